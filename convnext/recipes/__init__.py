"""One file an experiment: its settings, what it reproduces, the number to reach, and its cost.

A recipe's module has a docstring, ``SETTINGS`` and ``EXPECTED``; its file name, with dashes, is the recipe's name.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from convnext.config import RunSettings
from convnext.errors import SettingsError, did_you_mean
from convnext.models import registry


@dataclass(frozen=True)
class Expected:
    """What a recipe reaches.

    Attributes:
        text: the number, with its metric and split.
        source: the folder of ``results/`` with the run that measured it, or who published it; None where nobody has.
    """

    text: str
    source: str | None

    def __str__(self) -> str:
        return self.text + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class Recipe:
    """An experiment: `convnext train NAME`."""

    name: str
    docs: str
    settings: RunSettings
    expected: Expected

    @property
    def summary(self) -> str:
        """The first line of the recipe's text."""
        return self.docs.splitlines()[0]


def names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        SettingsError: there is none; the message names close matches.
    """
    if name not in names():
        raise SettingsError(f"no recipe is called {name!r}: {did_you_mean(name, names())}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    settings = module.SETTINGS.replace(recipe=name, name=name)
    return Recipe(name, (module.__doc__ or "").strip(), settings, module.EXPECTED)


def recipe(name: str, /, **changes: Any) -> RunSettings:
    """A recipe's settings, with changes: ``recipe("digits", epochs=5, **{"optimizer.lr": 1e-3})``.

    Raises:
        SettingsError: unknown recipe or setting, or a value out of its bounds.
    """
    base = get(name).settings
    return follow_model(base, base.replace(**changes))


def follow_model(base: RunSettings, changed: RunSettings) -> RunSettings:
    """Let settings that were not changed follow those that were.

    Another model than the recipe's has its own depths and dims: without this, ``--model.name convnext_small`` would be
    a name without an effect. The roadmap keeps them: there they are the scale at which its steps are compared. Another
    number of stages has dims that double from the recipe's first.

    Raises:
        SettingsError: depths and dims of different length.
    """
    name = changed.model.name
    if name in (base.model.name, registry.ROADMAP):
        depths, dims = changed.model.depths, changed.model.dims
        if depths and dims and dims == base.model.dims and len(depths) != len(dims):
            doubled = tuple(dims[0] * 2**stage for stage in range(len(depths)))
            changed = changed.replace(**{"model.dims": doubled})
        changed.model.check_stages()
        return changed
    resets: dict[str, Any] = {
        f"model.{field}": None
        for field in ("depths", "dims")
        if getattr(changed.model, field) == getattr(base.model, field)
    }
    if registry.has_no_layer_scale(name) and changed.model.layer_scale == base.model.layer_scale:
        resets["model.layer_scale"] = "variant"
    followed: RunSettings = changed.replace(**resets)
    followed.model.check_stages()
    return followed
