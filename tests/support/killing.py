"""Training commands in processes that are killed for real at points that can be named, and what they leave behind.

Processes are forked from one that has imported everything and has no threads, which tests/conftest.py starts: a start
costs a tenth of a second in place of seconds.
"""

import json
import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from convnext.cli import main
from convnext.data.loading.loader import Batch
from convnext.plots import predictions
from convnext.runs import checkpoint
from convnext.runs.folder import read_metrics
from convnext.training import trainer
from convnext.training.interruption import StopSignals
from convnext.training.trainer import Trainer

_CLOCK = ("seconds", "images_per_second")  # what two equal runs may differ in
_TIMEOUT = 300.0  # seconds after which a process hangs

TINY = tuple(
    shlex.split("""train digits --trackers --epochs 2 --batch-size 128 --gradient-accumulation 2 --ema-decay 0.9
    --data.workers 0
    --model.depths 1 1 --model.dims 8 16 --model.patch-size 2 --model.stochastic-depth 0.2
    --augment.mixup 0.8 --augment.cutmix 1 --augment.policy randaugment --augment.random_erasing 0.25
    --optimizer.lr 0.01 --optimizer.clip-norm 1""")
)
"""A training of 20 steps in about a second, with everything random switched on. It gets better in the second epoch."""
STEPS, STEPS_PER_EPOCH = 20, 10


@dataclass(frozen=True)
class Point:
    """Where a process gets a signal: as step ``step`` of the run begins; or, with ``disk``, right before the
    ``disk``-th change of the disk after the end of step ``step``, 0 being the start of the process.

    Changes of the disk are those that Python makes: a file opened for writing, renamed or removed, a link or folder
    made or removed.
    """

    step: int = 0
    disk: int = 0
    signal: int = signal.SIGKILL

    def arm(self) -> None:
        """Make this process signal itself at the point."""
        open_run, take_step = Trainer.open, Trainer.step
        stands_at, changes = 0, 0

        def strike() -> None:
            os.kill(os.getpid(), self.signal)

        def opened(trainer: Trainer, *args: Any) -> None:
            nonlocal stands_at
            open_run(trainer, *args)
            stands_at = trainer.state.step

        def step(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
            nonlocal stands_at
            if not self.disk and trainer.state.step + 1 == self.step:
                strike()
            asked = take_step(trainer, batch, signals)
            stands_at = trainer.state.step
            return asked

        def change() -> None:
            nonlocal changes
            changes += stands_at >= self.step
            if changes == self.disk and stands_at >= self.step:
                strike()

        Trainer.open = opened  # type: ignore[method-assign, assignment]
        Trainer.step = step  # type: ignore[method-assign, assignment]
        if self.disk:
            at_disk_changes(change)


def at_disk_changes(what: Callable[[], None]) -> None:
    """Have ``what`` called before this process changes the disk; its own children do not call it."""
    own = os.getpid()
    events = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate"}

    def audit(event: str, details: tuple[Any, ...]) -> None:
        writes = event == "open" and bool(details[2] & (os.O_WRONLY | os.O_RDWR)) and "/dev/" not in str(details[0])
        if (writes or event in events) and os.getpid() == own:
            what()

    sys.addaudithook(audit)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status; ``-n`` where signal n killed it.
        text: its standard output and error.
    """

    status: int
    text: str


class Started:
    """A process that runs ``convnext`` with ``args``, in ``folder``.

    Args:
        args: of the command.
        folder: its working directory, which exists.
        prepare: called in the process first; of a module's top level, since it is pickled.
        method: how the process is made: ``"forkserver"`` for one without threads; ``"fork"`` for a child of this one.
    """

    def __init__(
        self,
        args: Sequence[object],
        folder: Path,
        prepare: Callable[[], None] | None = None,
        method: Literal["forkserver", "fork"] = "forkserver",
    ) -> None:
        self._log = folder / "output.txt"
        context: Any = multiprocessing.get_context(method)
        arguments = ([str(arg) for arg in args], folder, self._log, prepare)
        self.process: BaseProcess = context.Process(target=_command, args=arguments)
        self.process.start()

    def end(self) -> Ended:
        """Wait for the end of the process."""
        self.process.join(_TIMEOUT)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"the process hangs; its output: {self._log.read_text()}")
        return Ended(self.process.exitcode, self._log.read_text())


def _command(args: list[str], folder: Path, log: Path, prepare: Callable[[], None] | None) -> None:
    os.chdir(folder)
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as where a shell starts the command
    torch.set_num_threads(1)
    for module, picture in ((trainer, "curves"), (predictions, "confusion_matrix"), (predictions, "prediction_grid")):
        setattr(module, picture, lambda *_, **__: None)  # more than half of the time, and nothing that is compared
    if prepare is not None:
        prepare()
    sys.exit(main(args))


def run(args: Sequence[object], folder: Path, point: Point | None = None) -> Ended:
    """Run ``convnext`` with ``args`` in ``folder``, made where it is not there, up to its end or the point."""
    folder.mkdir(parents=True, exist_ok=True)
    return Started(args, folder, point.arm if point is not None else None).end()


def last_line(ended: Ended) -> str:
    """The one line of an error that is the user's."""
    assert ended.status == 2, ended.text
    lines = [line for line in ended.text.splitlines() if line.startswith("convnext: ")]
    assert lines == ended.text.splitlines()[-1:]
    assert "internal error" not in lines[0]
    return lines[0]


def result(run: Path) -> dict[str, Any]:
    """All that two runs of the same settings must agree on: digests of every tensor of the last and the best
    checkpoint, how training stands, the metrics of every epoch and the test report."""
    values: dict[str, Any] = {}
    for name in ("last", "best"):
        if name == "best" and not (run / "checkpoints" / "best").is_symlink():
            continue  # no validation split
        folder = checkpoint.find(run, name)
        assert checkpoint.is_complete(folder)
        for file in sorted(folder.glob("*.safetensors")):
            values |= {f"{name} {file.stem} {key}": digest(tensor) for key, tensor in load_file(file).items()}
        state = json.loads((folder / "training.json").read_text())
        names = ("step", "loss_sum", "correct", "images", "best_step", "best_top1", "skipped_in_all", "fingerprints")
        values |= {f"{name} {key}": state[key] for key in names}
        values[f"{name} metrics"] = without_clock(state["metrics"])
    values["metrics"] = [without_clock(line) for line in read_metrics(run)]
    values["report"] = json.loads((run / "test_report.json").read_text())
    compared: dict[str, Any] = json.loads(json.dumps(values), parse_constant=str)  # a nan is none but itself
    return compared


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's type, shape and numbers."""
    numbers = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + numbers).hexdigest()


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    """Metrics of an epoch without those that depend on the machine's speed."""
    return {key: value for key, value in line.items() if key not in _CLOCK}


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints that a run has, oldest first."""
    return sorted(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-*"))
