"""`train`: from settings to a finished run."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from convnext import distributed
from convnext.config import RunSettings
from convnext.errors import SettingsError, UserError
from convnext.evaluation.metrics import Report
from convnext.output import say
from convnext.recipes import recipe
from convnext.runs.folder import folder_to_resume, new_folder, read_metrics
from convnext.storage.locks import locked
from convnext.training import faults
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.resolve import cached, prepare
from convnext.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        settings: its resolved settings.
        report: metrics of the last (averaged) weights on the test split; of the best, where the settings have patience.
        test_name: ``"test"``, or ``"val"`` where the data has no other split to test on.
        unreadable: a line for each image that could not be read since the run was started or resumed.
    """

    path: Path
    settings: RunSettings
    report: Report
    test_name: str = "test"
    unreadable: list[str] = field(default_factory=list)


def train(
    settings: RunSettings | str,
    *,
    resume: bool = False,
    model: nn.Module | None = None,
    data: Mapping[str, Dataset[Any]] | None = None,
    class_names: Sequence[str] | None = None,
    **changes: Any,
) -> Run:
    """Train, evaluate on the test split, and keep everything in the run's folder.

    Args:
        settings: what to do, as of `convnext.recipe`; or a recipe's name.
        resume: go on with the newest run of this name where there is one.
        model: one's own module, from normalized images ``(N, C, H, W)`` to logits ``(N, K)``, trained in place of that
            of the settings. To use the run later, give it again: ``Predictor.load(run, model=…)``.
        data: one's own map-style data sets, by ``"train"``, ``"val"`` and ``"test"`` (the last two may be missing), of
            Pillow images or uint8 tensors ``(C, H, W)`` and class indices. A run that is interrupted goes on exactly
            where each is a function of its index.
        class_names: of the labels of ``data``; None takes the ``classes`` of its training set.
        changes: of a recipe's settings, as `convnext.recipe` takes them: ``train("digits", epochs=1)``.

    Returns:
        The finished run.

    Raises:
        UserError: settings, data or an output folder that cannot be used; nothing is written then.
        InterruptedRunError: SIGTERM or SIGINT came; the run can be resumed.
    """
    settings = _settings(settings, changes, model, data)
    settings, splits, accelerator = prepare(settings, model, data, class_names)
    with distributed.reported_once(accelerator):
        with distributed.first_on_machine(accelerator):
            splits = cached(splits, settings.data, accelerator.is_local_main_process)
        trainer = Trainer(settings, splits, accelerator, model)
        before = distributed.from_main(accelerator, lambda: folder_to_resume(settings) if resume else None)
        folder = before or distributed.from_main(accelerator, lambda: new_folder(settings.output, settings.name))
    main = accelerator.is_main_process
    if resume and before is None and main:
        say(f"nothing to resume: {settings.output} has no run {settings.name!r}; starting it")
    try:
        with (
            faults.explained(settings, folder),
            locked(folder) if main else nullcontext(),
            StopSignals(folder) as signals,
        ):
            trainer.open(folder)
            with trainer.tracker:
                try:
                    trainer.fit(signals)
                    report = trainer.finish(signals)
                except (InterruptedRunError, UserError):
                    trainer.draw_curves()
                    raise
            return Run(folder, trainer.settings, report, splits.test_name, list(trainer.unreadable))
    except Exception:
        if main and before is None and not (folder / "checkpoints").exists() and not read_metrics(folder):
            shutil.rmtree(folder)  # nothing in it but the settings that led to the error
        raise


def _settings(settings: RunSettings | str, changes: Mapping[str, Any], model: object, data: object) -> RunSettings:
    """The settings to train with; SettingsError for what goes into them in another way."""
    if model is not None and not isinstance(model, nn.Module):
        raise SettingsError(f"model is a torch.nn.Module, got {model!r}: settings are changed by **{{'model.name': …}}")
    if data is not None and not isinstance(data, Mapping):
        raise SettingsError(f"data has data sets by split, got {data!r}: a folder is given by **{{'data.root': …}}")
    if isinstance(settings, str):
        return recipe(settings, **changes)
    if changes:
        raise SettingsError(f"{', '.join(changes)}: changes go with a recipe's name, or into settings.replace(…)")
    return settings
