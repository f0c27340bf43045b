"""One file an experiment: its settings, what it reproduces, the number that others published, and ours.

A recipe's module has a docstring and ``SETTINGS``; its file name, with dashes, is the recipe's name. It may have
``PUBLISHED`` and ``MEASURED``, the numbers of others and ours, ``BY_MODEL``, settings that go with another model than
its own, and ``choose``, which chooses settings by the data. What several recipes share stands in ``common/``.
"""

import importlib
import pkgutil
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from convnext.config import RunSettings
from convnext.config.base import Settings
from convnext.errors import SettingsError, did_you_mean
from convnext.models import registry

Choice: TypeAlias = Callable[[RunSettings, Collection[str]], tuple[RunSettings, list[str]]]


@dataclass(frozen=True)
class Published:
    """A number that others reached on a split, not run here, and who published it where: by model name percent for
    top-1, a fraction for F1 (the mean over the classes); ``about`` where it was given as about that."""

    values: Mapping[str, float]
    metric: Literal["top-1", "F1"]
    split: str
    source: str
    about: bool = False

    def text(self, model: str | None = None) -> str:
        """The number of that model, or of all where it has none, with metric and split."""
        values = self.values if model is None or model not in self.values else {model: self.values[model]}
        unit = " %" if self.metric == "top-1" else ""
        numbers = [f"{value}{unit}" + (f" ({name})" if len(values) > 1 else "") for name, value in values.items()]
        return f"{'about ' * self.about}{', '.join(numbers)} {self.metric}, {self.split}"


@dataclass(frozen=True)
class Measured:
    """A number of a run of ours, with its metric and split, and the folder of ``results/`` with that run."""

    text: str
    folder: str

    def __str__(self) -> str:
        return f"{self.text} ({self.folder})"


@dataclass(frozen=True)
class Recipe:
    """An experiment: `convnext train NAME`, with its text, the number that it reproduces and our runs of it.

    Attributes:
        by_model: by model name, the settings that go with another model than its own.
        choose: from settings, and the names of those that the user gave, to those chosen by the data, with a line for
            each choice.
    """

    name: str
    docs: str
    settings: RunSettings
    published: Published | None
    measured: tuple[Measured, ...]
    by_model: Mapping[str, Mapping[str, Any]]
    choose: Choice | None

    @property
    def summary(self) -> str:
        """The first line of the recipe's text."""
        return self.docs.splitlines()[0]


def names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def get(name: str) -> Recipe:
    """The recipe of that name; SettingsError, with close matches, where there is none."""
    if name not in names():
        raise SettingsError(f"no recipe is called {name!r}: {_meant(name)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return Recipe(
        name=name,
        docs=(module.__doc__ or "").strip(),
        settings=module.SETTINGS.replace(recipe=name, name=name),
        published=getattr(module, "PUBLISHED", None),
        measured=getattr(module, "MEASURED", ()),
        by_model=getattr(module, "BY_MODEL", {}),
        choose=getattr(module, "choose", None),
    )


def _meant(name: str) -> str:
    """What to write in place of a name that is no recipe's."""
    if Path(name).is_dir():
        return f"for the images of a folder: convnext train folder --data.root {shlex.quote(name)}"
    if Path(name).name != name:
        return "nor is that a folder; for the images of one: convnext train folder --data.root DIR"
    if name in registry.list_models():
        return f"that is a model: convnext train RECIPE --model.name {name}"
    if "=" in name or name.startswith("-"):
        return "the recipe comes first, then its settings: convnext train digits --epochs 3"
    return f"{did_you_mean(name, names())} For your own images: convnext train folder --data.root DIR"


def recipe(name: str, /, **changes: Any) -> RunSettings:
    """A recipe's settings, with changes: ``recipe("digits", epochs=5, **{"optimizer.lr": 1e-3})``.

    Raises:
        SettingsError: unknown recipe or setting, or a value out of its bounds.
        DataError: a recipe that chooses by the data, whose folder cannot be used.
    """
    return complete(get(name).settings.replace(**changes), given_names(changes))[0]


def given_names(changes: Mapping[str, Any]) -> set[str]:
    """The dotted names of the settings that are in ``changes``, as `convnext.config.Settings.replace` takes them."""
    names = set()
    for name, value in changes.items():
        inner = value if isinstance(value, Mapping) else value.model_fields_set if isinstance(value, Settings) else None
        names |= {name} if inner is None else {f"{name}.{key}" for key in inner}
    return names


def complete(settings: RunSettings, given: Collection[str]) -> tuple[RunSettings, list[str]]:
    """Let settings that the user did not give (``given`` has the dotted names of his, which stay as they are, also
    where they equal the recipe's) follow those that he did, and the data where the recipe chooses by them.

    Returns:
        The settings, and lines that say what was chosen by the data and why.

    Raises:
        SettingsError: depths and dims of different length, or a setting that the model does not take.
        DataError: a folder to choose by that cannot be used.
    """
    recipe = get(settings.recipe)
    model, _ = registry.follow_weights(settings.model, given)
    registry.check_given(model, given)
    followed = _follow_model(recipe, settings.replace(model=model), given)
    followed = followed.replace(model=registry.follow_weights(followed.model, given)[0])
    return recipe.choose(followed, given) if recipe.choose else (followed, [])


def _follow_model(recipe: Recipe, settings: RunSettings, given: Collection[str]) -> RunSettings:
    """Let the settings of the model, and those that go with it, follow its name.

    Another model than the recipe's has its own depths and dims: without this, ``--model.name convnext_small`` would be
    a name without an effect. The roadmap keeps them: there they are the scale at which its steps are compared. Another
    number of stages has dims that double from the recipe's first. What a model does not take at all, such as the layer
    scale of a ResNet, `registry.resolve` leaves out.
    """
    base, name = recipe.settings, settings.model.name
    follow: dict[str, Any] = dict(recipe.by_model.get(name, {}))
    if name in (base.model.name, "roadmap"):
        depths, dims = settings.model.depths, settings.model.dims
        if depths and dims and len(depths) != len(dims):
            follow["model.dims"] = tuple(dims[0] * 2**stage for stage in range(len(depths)))
    else:
        follow = {"model.depths": None, "model.dims": None} | follow
        if registry.find(name).defaults.get("layer_scale", 1) is None:
            follow["model.layer_scale"] = "variant"
    followed: RunSettings = settings.replace(**not_given(follow, given))
    followed.model.check_stages()
    return followed


def not_given(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Those of ``values``, by dotted name, that the user did not give."""
    return {name: value for name, value in values.items() if name not in given}
