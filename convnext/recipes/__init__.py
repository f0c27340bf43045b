"""One file an experiment: its settings, what it reproduces, the number to reach, and its cost.

A recipe's module has a docstring, ``SETTINGS`` and ``EXPECTED``; its file name, with dashes, is the recipe's name.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from convnext.config import RunSettings
from convnext.errors import SettingsError, did_you_mean


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
    settings: RunSettings = get(name).settings.replace(**changes)
    return settings
