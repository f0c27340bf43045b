"""`train`: from settings to a finished run."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
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
from convnext.runs.folder import (
    at_home,
    check_same_settings,
    folder_to_resume,
    new_folder,
    read_metrics,
    run_to_resume,
    settings_before,
    settings_to_resume,
)
from convnext.storage.locks import locked
from convnext.training import faults
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.resolve import cached, prepare
from convnext.training.trainer import Trainer
from convnext.weights.model_info import read_json


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
    settings: RunSettings | str | None = None,
    *,
    resume: bool | str | Path = False,
    model: nn.Module | None = None,
    data: Mapping[str, Dataset[Any]] | None = None,
    class_names: Sequence[str] | None = None,
    **changes: Any,
) -> Run:
    """Train, evaluate on the test split, and keep everything in the run's folder.

    Args:
        settings: what to do, as of `convnext.recipe`; or a recipe's name. With the folder of a run in ``resume``, its
            own are taken if none are given.
        resume: go on with the newest run of this name where there is one; or with the run in this folder, which may
            have been renamed or moved.
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
    run = None if isinstance(resume, bool) else run_to_resume(Path(resume))
    given = _settings(settings, run, changes, model, data)
    if resume and given.precision == "auto":  # what was measured once is not measured anew
        earlier = read_json(run / "settings.json", RunSettings) if run else settings_before(given)
        given = given.replace(precision=earlier.precision if earlier else "auto")
    resolved, splits, accelerator = prepare(given, model, data, class_names)
    with distributed.reported_once(accelerator):
        with distributed.first_on_machine(accelerator):
            splits = cached(splits, resolved.data, accelerator.is_local_main_process)
        trainer = Trainer(resolved, splits, accelerator, model)
        before = distributed.from_main(accelerator, lambda: _folder(resolved, run or bool(resume)))
        folder = before or distributed.from_main(accelerator, lambda: new_folder(resolved.output, resolved.name))
    main = accelerator.is_main_process
    if resume and before is None and main:
        say(f"nothing to resume: {resolved.output} has no run {resolved.name!r}; starting it")
    with locked(folder) if main else nullcontext(lambda: True) as is_there, StopSignals(folder) as signals:
        try:
            with faults.explained(resolved, folder):
                trainer.open(folder, partial(faults.check_there, folder, is_there))
                with trainer.tracker:
                    report = _fit(trainer, signals, is_there)
                return Run(folder, trainer.settings, report, splits.test_name, list(trainer.unreadable))
        except Exception:
            started = before is not None or (folder / "checkpoints").exists() or read_metrics(folder)
            if main and not started and is_there():
                shutil.rmtree(folder)  # nothing in it but the settings that led to the error
            raise


def _fit(trainer: Trainer, signals: StopSignals, is_there: Callable[[], bool]) -> Report:
    try:
        trainer.fit(signals)
        return trainer.finish(signals)
    except (InterruptedRunError, UserError):
        if is_there():
            trainer.draw_curves()
        raise


def _settings(
    settings: RunSettings | str | None, run: Path | None, changes: Mapping[str, Any], model: object, data: object
) -> RunSettings:
    """The settings to train with, those of the ``run`` that goes on where it is given and they are not; SettingsError
    for what goes into them in another way."""
    if model is not None and not isinstance(model, nn.Module):
        raise SettingsError(f"model is a torch.nn.Module, got {model!r}: settings are changed by **{{'model.name': …}}")
    if data is not None and not isinstance(data, Mapping):
        raise SettingsError(f"data has data sets by split, got {data!r}: a folder is given by **{{'data.root': …}}")
    if isinstance(settings, RunSettings):
        if changes:
            raise SettingsError(f"{', '.join(changes)}: changes go with a recipe's name, or into settings.replace(…)")
        return settings if run is None else at_home(settings, run)
    if run is not None:
        changed: RunSettings = settings_to_resume(run, settings).replace(**changes)
        return changed
    if settings is None:
        raise SettingsError("train what? give settings, the name of a recipe, or the folder of a run as resume")
    return recipe(settings, **changes)


def _folder(settings: RunSettings, resume: Path | bool) -> Path | None:
    """The folder of the run that goes on; None for a new one."""
    if isinstance(resume, Path):
        check_same_settings(resume, settings)
        return resume
    return folder_to_resume(settings) if resume else None
