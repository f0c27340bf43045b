"""The settings of a run that goes on, where they depend on what was chosen, or was there, when it began."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from convnext import recipes
from convnext.config import ModelSettings, RunSettings
from convnext.errors import UserError
from convnext.models import registry
from convnext.runs.folder import absolute_paths, best_to_resume, folders, has_settings
from convnext.weights.catalogue import AUTO
from convnext.weights.files import weights_path
from convnext.weights.model_info import read_json


def complete(settings: RunSettings, given: Collection[str]) -> tuple[RunSettings, list[str]]:
    """As `convnext.recipes.complete`, but as a run of this name began: what ``model.weights`` auto came to stays, and a
    file or folder of weights that is gone brings what is written down of it.

    Of several such runs it is the one to go on with, of those that the settings would be the same as, each with its own
    weights; and the newest where there is none.

    Raises:
        UserError: as `convnext.recipes.complete` does.
    """
    path = weights_path(settings.model.weights)
    if settings.model.weights != AUTO and (path is None or path.exists()):
        return recipes.complete(settings, given)
    completed: dict[Path, tuple[RunSettings, list[str]]] = {}
    chosen: dict[ModelSettings, tuple[RunSettings, list[str]]] = {}  # for which the images are looked at once
    same: dict[Path, RunSettings] = {}
    for folder in folders(settings.output, settings.name):
        with suppress(UserError):  # damaged, or begun otherwise
            begun = read_json(folder / "settings.json", RunSettings)
            own = weights_path(begun.model.weights)
            if path is None and own is None:
                if (asked := _with_choice_of(begun, settings.model, given)) not in chosen:
                    chosen[asked] = recipes.complete(settings.replace(model=asked), given)
                completed[folder] = chosen[asked]
            elif path is not None and own is not None and own.absolute() == path.absolute():
                completed[folder] = _with_weights_of(begun, settings, given)
            if folder in completed and has_settings(folder, _resolved(completed[folder][0], begun)):
                same[folder] = completed[folder][0]
    if same:
        return completed[best_to_resume(same)]
    return next(iter(completed.values()), None) or recipes.complete(settings, given)


def _with_choice_of(begun: RunSettings, model: ModelSettings, given: Collection[str]) -> ModelSettings:
    """The model with the weights, and the name of theirs, that were chosen for the run that has ``begun``."""
    own = begun.model
    name = model.name if own.weights is None or "model.name" in given else own.name
    changed: ModelSettings = model.replace(name=name, weights=own.weights)
    return changed


def _with_weights_of(
    begun: RunSettings, settings: RunSettings, given: Collection[str]
) -> tuple[RunSettings, list[str]]:
    """Completed with the architecture, the size of images and the statistics that the weights brought, which are gone,
    as the run that has ``begun`` has them."""
    weights = begun.model.weights
    architecture = {"name", *(name.removeprefix("model.") for name in registry.ARCHITECTURE)}
    brought = {f"model.{name}": getattr(begun.model, name) for name in architecture}
    brought |= {f"data.{name}": getattr(begun.data, name) for name in ("image_size", "mean", "std")}
    # Nothing looks for the file of a checkpoint that is gone, as it would for the folder of one.
    brought |= {"model.weights": str(Path(str(weights)) / "model.safetensors")}
    asked = settings.replace(**recipes.not_given(brought, set(given) - {"model.weights"}))
    completed, notes = recipes.complete(asked, set(given) | brought.keys())
    return completed.replace(**{"model.weights": weights}), notes


def _resolved(settings: RunSettings, begun: RunSettings) -> RunSettings:
    """The settings as they would be resolved, as far as the data is that of the run that has ``begun``."""
    model = registry.resolve(settings.model, begun.model.in_channels or 3)
    statistics = {"data.mean": settings.data.mean or begun.data.mean, "data.std": settings.data.std or begun.data.std}
    return absolute_paths(settings.replace(model=model, **statistics))
