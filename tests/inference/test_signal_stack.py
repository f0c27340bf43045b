"""OpenVINO's signal stacks stay away from the main thread: a process that used it survives signals."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import convnext
from convnext.inference.export.export import export
from convnext.inference.signal_stack import in_own_thread

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import convnext
from convnext.inference.export.export import export

seen = []
signal.signal(signal.SIGUSR1, lambda *args: seen.append(args))
first, second = (convnext.Predictor.load(path) for path in sys.argv[1:3])
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
if len(sys.argv) > 3:
    export(sys.argv[3], "openvino", precision="int8", max_drop=100.0)
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(seen))
"""


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_process_survives_signals_after_openvino(precision: str, digits_run: convnext.Run, tmp_path: Path) -> None:
    file = export(digits_run.path, "openvino", output=tmp_path / "one.xml").path
    words = [str(file), str(file)] + ([str(digits_run.path)] if precision == "int8" else [])
    done = subprocess.run(  # whose fault handler, as pytest's, has Python give the main thread a signal stack
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2\n" if precision == "int8" else "1\n"), done.stderr


def test_what_is_raised_in_the_thread_is_raised_by_the_call() -> None:
    def fail() -> None:
        raise ValueError(f"in {threading.current_thread().name}")

    with pytest.raises(ValueError, match="in Thread"):
        in_own_thread(fail)
    assert in_own_thread(threading.current_thread) is not threading.current_thread()


def test_an_interruption_ends_the_thread() -> None:
    ended = []

    def forever() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:
                pass
        finally:
            ended.append(threading.current_thread())

    with pytest.raises(KeyboardInterrupt):
        in_own_thread(forever)
    assert ended
    assert not ended[0].is_alive()
