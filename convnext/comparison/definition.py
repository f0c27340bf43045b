"""What is compared: models, and values of settings, under one recipe; and what each contender is trained with."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from convnext import recipes
from convnext.config import ModelSettings, RunSettings
from convnext.errors import SettingsError, did_you_mean
from convnext.models import registry
from convnext.output import few
from convnext.recipes import Recipe
from convnext.runs.folder import flatten

# What a comparison sets itself, by dotted name, and the option that does it.
_OWN = {
    **{"name": "its cells have names of their own", "output": "--output", "recipe": "--recipe", "seed": "--seeds"},
    **{"model.name": "--models", "data.folds": "--folds", "data.fold": "--folds"},
}


class Definition(BaseModel):
    """What is compared, as it was asked for.

    Attributes:
        recipe: under which all are trained.
        given: settings in place of the recipe's, for all contenders, by dotted name, as JSON has them.
        models: the contenders; none for the recipe's own.
        vary: by dotted name, the values of a setting; every model is trained with every combination.
        one_at_a_time: in place of combinations, every model as it is, and with each of those values alone.
        seeds: trainings of each, whose seeds count from the setting's.
        folds: of all images, each of which is the test once; None for the data set's own splits.
        learning_rates: of which each contender takes the one that is best on the validation split.
        budget: of one training, such as ``30min`` or ``2e15flop``; None for the epochs of the settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    given: dict[str, Any] = {}
    models: tuple[str, ...] = ()
    vary: dict[str, tuple[str, ...]] = {}
    one_at_a_time: bool = False
    seeds: Annotated[int, Field(ge=1)] = 3
    folds: int | None = None
    learning_rates: tuple[float, ...] = ()
    budget: str | None = None


class Contender(BaseModel):
    """One of those that are compared.

    Attributes:
        model: its name.
        varied: what is its own, by dotted name, as JSON has it.
        settings: of its trainings, but for name, output, seed and fold.
        notes: lines on what of the recipe does not apply to it, and what the recipe has for it alone.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    varied: dict[str, Any]
    settings: RunSettings
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its model and what is varied: ``resnet18 optimizer.lr=0.001``."""
        return " ".join([self.model, *(f"{name}={_text(value)}" for name, value in self.varied.items())])

    def named(self, output: Any, seed: int, fold: int | None) -> RunSettings:
        """The settings of its training with a seed, tested on a fold, in a folder of its own in ``output``."""
        name = f"{self.label}-seed{seed}{'' if fold is None else f'-fold{fold}'}"
        name = re.sub("[ :/,]+", "-", name)
        named: RunSettings = self.settings.replace(name=name, output=output, seed=seed, **{"data.fold": fold or 0})
        return named


def parse_vary(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``optimizer.lr=1e-3,2e-3`` as names and values; SettingsError for what is no such word."""
    vary = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not all(texts := tuple(values.split(","))):
            raise SettingsError(f"--vary {word}: write NAME=VALUE,VALUE, such as optimizer.lr=1e-3,2e-3")
        if name in vary or len(set(texts)) < len(texts):
            raise SettingsError(f"--vary {word}: {name if name in vary else 'a value'} is there twice")
        if name in _OWN:
            raise SettingsError(f"--vary {name}: a comparison sets that itself ({_OWN[name]})")
        if name not in (names := RunSettings.names()):
            raise SettingsError(f"--vary: no setting is called {name}: {did_you_mean(name, names)}")
        vary[name] = texts
    return vary


def contenders(definition: Definition) -> list[Contender]:
    """Those that are compared, with the settings of each.

    Raises:
        SettingsError: a model or setting that does not exist, that does not fit, or that is there twice.
        UserError: a library or data that is missing.
    """
    recipe = recipes.get(definition.recipe)
    _check(definition)
    models = definition.models or (recipe.settings.model.name,)
    values = [[(name, _value(text)) for text in texts] for name, texts in definition.vary.items()]
    each = [(), *((pair,) for pairs in values for pair in pairs)] if definition.one_at_a_time else [*product(*values)]
    made = [_contender(recipe, definition, model, dict(varied)) for model in models for varied in each]
    as_it_is = {contender.model: contender.settings for contender in made if not contender.varied}
    if same := [one.label for one in made if one.varied and as_it_is.get(one.model) == one.settings]:
        raise SettingsError(f"{few(same)} is as without it: leave it out")
    labels = [contender.label for contender in made]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise SettingsError(f"{few(sorted(twice))} is compared with itself: name each contender once")
    return made


def _check(definition: Definition) -> None:
    if own := sorted(definition.given.keys() & (_OWN.keys() - {"output", "seed"})):
        raise SettingsError(f"--{own[0]}: a comparison sets that itself ({_OWN[own[0]]})")
    if both := sorted(definition.given.keys() & definition.vary.keys()):
        raise SettingsError(f"{both[0]} is given and varied: leave one out")
    taken = {"optimizer.lr": definition.learning_rates, "epochs": definition.budget}
    for name, option in taken.items():
        if option and name in {**definition.given, **definition.vary}:
            chosen = "--learning-rates" if name == "optimizer.lr" else "--budget"
            raise SettingsError(f"{name} is chosen by {chosen}: leave one of them out")


def _contender(recipe: Recipe, definition: Definition, model: str, varied: Mapping[str, Any]) -> Contender:
    changes = {**definition.given, **varied}
    if definition.models:
        changes["model.name"] = model
    if definition.folds is not None:
        changes["data.folds"] = definition.folds
    asked: RunSettings = recipe.settings.replace(**changes)
    settings, notes = recipes.complete(asked, changes.keys())
    resolved = registry.resolve(settings.model)
    registry.check_image_size(resolved, settings.data.first_size)
    flat = flatten(settings)
    return Contender(
        model=settings.model.name,
        varied={name: flat[name] for name in varied},
        settings=settings,
        notes=(*notes, *_differences(recipe, settings, changes)),
    )


def _differences(recipe: Recipe, settings: RunSettings, given: Mapping[str, Any]) -> list[str]:
    """What of the recipe's own a contender leaves out, and what the recipe has for it alone."""
    name = settings.model.name
    if name == recipe.settings.model.name:
        return []
    known, left_out = registry.find(name).defaults, []
    for field, about in ModelSettings.model_fields.items():
        value = getattr(recipe.settings.model, field)
        own = value != about.default and field != "name" and f"model.{field}" not in given
        if own and (field not in known or getattr(settings.model, field) != value):
            left_out.append(f"model.{field}")
    notes = [f"{name}: the recipe's {few(left_out, 9)} are for its own model, and left out"] if left_out else []
    before = flatten(recipe.settings)
    for_it = {key: value for key, value in recipe.by_model.get(name, {}).items() if before[key] != value}
    changed = [f"{key} {_text(value)}, not {_text(before[key])}" for key, value in for_it.items() if key not in given]
    return notes + ([f"{name}: the recipe has {', '.join(changed)} for this model"] if changed else [])


def _value(text: str) -> Any:
    """A setting's value as it is written in ``--vary``: ``none`` for None, words for the items of a list."""
    return None if text == "none" else text.split() if " " in text else text


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
