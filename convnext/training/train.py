"""`train`: from settings to a finished run."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from convnext import distributed, recipes
from convnext.config import RunSettings
from convnext.errors import SettingsError, UserError
from convnext.evaluation.metrics import Report
from convnext.output import say
from convnext.runs import resumption
from convnext.runs.folder import (
    at_home,
    check_same_settings,
    folder_to_resume,
    new_folder,
    read_metrics,
    run_to_resume,
    settings_to_resume,
)
from convnext.storage.locks import locked
from convnext.training import faults
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.resolve import cached, check_cache, prepare
from convnext.training.trainer import Trainer
from convnext.weights.files import weights_path
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
    given = _settings(settings, run or bool(resume), changes, model, data)
    _check_own(given, recipes.given_names(changes), model, data)
    begun = partial(_begun, resume=run or True) if resume else None
    resolved, splits, accelerator = prepare(given, model, data, class_names, begun=begun)
    with distributed.reported_once(accelerator):
        before = distributed.from_main(accelerator, lambda: _folder(resolved, run or bool(resume)))
        if before is None:
            check_cache(resolved.data, splits)
        with distributed.first_on_machine(accelerator):
            splits = cached(splits, resolved.data, accelerator.is_local_main_process)
        trainer = Trainer(resolved, splits, accelerator, model)
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
    settings: RunSettings | str | None, resume: Path | bool, changes: Mapping[str, Any], model: object, data: object
) -> RunSettings:
    """The settings to train with, those of the run in the folder ``resume`` where they are not given; SettingsError
    for what goes into them in another way."""
    if model is not None and not isinstance(model, nn.Module):
        raise SettingsError(f"model is a torch.nn.Module, got {model!r}: settings are changed by **{{'model.name': …}}")
    if data is not None and not isinstance(data, Mapping):
        raise SettingsError(f"data has data sets by split, got {data!r}: a folder is given by **{{'data.root': …}}")
    if isinstance(settings, RunSettings):
        if changes:
            raise SettingsError(f"{', '.join(changes)}: changes go with a recipe's name, or into settings.replace(…)")
        return at_home(settings, resume) if isinstance(resume, Path) else settings
    if isinstance(resume, Path):
        changed: RunSettings = settings_to_resume(resume, settings).replace(**changes)
        return changed
    if settings is None:
        raise SettingsError("train what? give settings, the name of a recipe, or the folder of a run as resume")
    if resume:
        return resumption.complete(recipes.get(settings).settings.replace(**changes), recipes.given_names(changes))[0]
    return recipes.recipe(settings, **changes)


def _check_own(settings: RunSettings, given: Collection[str], model: object, data: object) -> None:
    """Refuse, with a SettingsError, settings that a module or data sets of one's own would leave without effect."""
    weights = settings.model.weights
    by_recipe = settings.recipe in recipes.names() and recipes.get(settings.recipe).choose is not None
    if (
        model is not None
        and weights is not None
        and ("model.weights" in given or weights_path(weights) is not None or not by_recipe)
    ):
        raise SettingsError(
            f"model.weights {weights}: a module of one's own starts from the weights that it has: leave model.weights "
            f"out, and load them into the module"
        )
    if data is not None and settings.data.exclude is not None:
        raise SettingsError("data.exclude names files, which data sets of one's own are not: leave it out")
    if data is not None and settings.data.cache != "none":
        raise SettingsError(
            f"data.cache {settings.data.cache}: nothing tells whether data sets of one's own give the images that were "
            f"kept: leave data.cache out"
        )


def _folder(settings: RunSettings, resume: Path | bool) -> Path | None:
    """The folder of the run that goes on; None for a new one."""
    if isinstance(resume, Path):
        check_same_settings(resume, settings)
        return resume
    return folder_to_resume(settings) if resume else None


def _begun(settings: RunSettings, resume: Path | bool) -> RunSettings | None:
    """The settings of the run that goes on, as far as it has begun."""
    folder = _folder(settings, resume)
    path = folder / "settings.json" if folder is not None else None
    return read_json(path, RunSettings) if path is not None and path.is_file() else None
