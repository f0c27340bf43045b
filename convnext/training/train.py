"""`train`: from settings to a finished run."""

import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from convnext import distributed
from convnext.config import RunSettings
from convnext.data.datasets.load import load_splits
from convnext.devices import make_accelerator
from convnext.evaluation.metrics import Report
from convnext.runs.folder import folder_to_resume, new_folder, read_metrics
from convnext.storage.locks import locked
from convnext.training import faults
from convnext.training.interruption import StopSignals
from convnext.training.resolve import cached, resolve_settings
from convnext.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        settings: its resolved settings.
        report: metrics of the last (averaged) weights on the test split.
        test_name: ``"test"``, or ``"val"`` where the data has no other split to test on.
        unreadable: a line for each image that could not be read since the run was started or resumed.
    """

    path: Path
    settings: RunSettings
    report: Report
    test_name: str = "test"
    unreadable: list[str] = field(default_factory=list)


def train(settings: RunSettings, *, resume: bool = False) -> Run:
    """Train, evaluate on the test split, and keep everything in the run's folder.

    Args:
        settings: what to do; see `convnext.recipe`.
        resume: go on with the newest run of this name where there is one.

    Returns:
        The finished run.

    Raises:
        UserError: settings, data or an output folder that cannot be used; nothing is written then.
        InterruptedRunError: SIGTERM or SIGINT came; the run can be resumed.
    """
    accelerator = make_accelerator(settings)
    with distributed.reported_once(accelerator):
        with distributed.first_on_machine(accelerator):  # which downloads what is missing
            splits = load_splits(settings.data)
        settings, splits = resolve_settings(settings, splits, accelerator)
        with distributed.first_on_machine(accelerator):
            splits = cached(splits, settings.data, accelerator.is_local_main_process)
        trainer = Trainer(settings, splits, accelerator)
        folder, was_there = _choose_folder(accelerator, settings, resume)
    main = accelerator.is_main_process
    if resume and not was_there and main:
        print(f"nothing to resume: {settings.output} has no run {settings.name!r}; starting it", file=sys.stderr)
    try:
        with (
            faults.explained(settings, folder),
            locked(folder) if main else nullcontext(),
            StopSignals(folder) as signals,
        ):
            trainer.open(folder)
            with trainer.tracker:
                trainer.fit(signals)
                report = trainer.finish(signals)
            return Run(folder, trainer.settings, report, splits.test_name, list(trainer.unreadable))
    except Exception:
        if main and not was_there and not (folder / "checkpoints").exists() and not read_metrics(folder):
            shutil.rmtree(folder)  # nothing in it but the settings that led to the error
        raise


def _choose_folder(accelerator: Accelerator, settings: RunSettings, resume: bool) -> tuple[Path, bool]:
    """The run's folder, made or found by the main process, and whether it was there before.

    Raises:
        UserError: it cannot be made, or has other settings; on every process.
    """

    def choose() -> tuple[Path, bool]:
        before = folder_to_resume(settings) if resume else None
        return before or new_folder(settings.output, settings.name), before is not None

    return distributed.from_main(accelerator, choose)
