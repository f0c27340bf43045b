"""Jobs in processes of their own."""

import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from convnext.comparison.running import Job, Outcome, run_jobs
from convnext.errors import UserError
from convnext.training.interruption import InterruptedRunError, StopSignals


def fail(error: Exception) -> None:
    raise error


def strike(number: int) -> None:
    os.kill(os.getpid(), number)


def meet(barrier: Path, other: Path) -> str:
    """Return once the other job is there, too."""
    os.mkfifo(barrier)
    while not other.exists():
        threading.Event().wait(0.01)
    return f"{torch.get_num_threads()} threads on {os.environ.get('CUDA_VISIBLE_DEVICES')}"


def until_stopped(ready: str, folder: Path) -> None:
    with StopSignals(folder) as signals:
        with Path(ready).open("w") as file:  # waits for the reader
            file.write("ready")
        while signals.received is None:
            threading.Event().wait(0.01)
        (folder / "saved").touch()
        signals.stop()


def outcomes(jobs: list[Job], folder: Path, parallel: int = 1, gpus: tuple[str, ...] = ()) -> dict[str, Outcome]:
    with StopSignals(folder) as signals:
        return {job.name: outcome for job, outcome in run_jobs(jobs, signals, parallel, gpus)}


def test_one_that_fails_or_dies_leaves_the_others(tmp_path: Path) -> None:
    jobs = [
        Job("user", partial(fail, UserError("no such image"))),
        Job("ours", partial(fail, ZeroDivisionError("by zero"))),
        Job("killed", partial(strike, signal.SIGKILL)),
        Job("fine", partial(int, "3"), tmp_path / "logs" / "fine.txt"),
    ]
    assert outcomes(jobs, tmp_path) == {
        "user": Outcome(problem="no such image", status=2),
        "ours": Outcome(problem="internal error: ZeroDivisionError: by zero", status=1),
        "killed": Outcome(
            problem="killed by SIGKILL; where memory ran out, lower --parallel or --batch-size", status=137
        ),
        "fine": Outcome(value=3),
    }
    assert (tmp_path / "logs" / "fine.txt").read_text() == ""


def test_several_at_a_time_have_a_gpu_each(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    jobs = [Job("first", partial(meet, first, second)), Job("second", partial(meet, second, first))]
    found = outcomes(jobs, tmp_path, parallel=2, gpus=("4", "7"))
    threads = max(1, torch.get_num_threads() // 2)
    assert sorted(outcome.value for outcome in found.values()) == [f"{threads} threads on {gpu}" for gpu in "47"]


def test_a_signal_stops_what_runs_after_it_has_saved(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    jobs = [Job("long", partial(until_stopped, str(ready), tmp_path)), Job("next", partial(fail, AssertionError()))]
    with StopSignals(tmp_path) as signals:

        def interrupt() -> None:
            ready.read_text()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(InterruptedRunError, match="stopped by SIGINT"):
            list(run_jobs(jobs, signals, 1, ()))
    assert (tmp_path / "saved").exists()
