"""``convnext recipes``: the experiments that there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from convnext import recipes
from convnext.commands.terminal import Table, parse, print_table
from convnext.errors import SettingsError
from convnext.output import show

_STEPS_PER_EPOCH = 100  # in the picture of a recipe for the user's own images


@dataclass(frozen=True)
class _Recipes:
    """List the recipes, or show one with all its settings."""

    name: tyro.conf.Positional[str | None] = None
    """Recipe to show."""
    plot: Path | None = None
    """Picture to write: the recipe's learning rate, and the side of its images where it grows, over the epochs."""


def main(args: Sequence[str]) -> int:
    """List the recipes, or show one with all its settings."""
    options = parse(_Recipes, args, "recipes")
    if options.name is not None:
        _show_recipe(recipes.get(options.name), options.plot)
        return 0
    if options.plot is not None:
        raise SettingsError("which recipe's schedule? convnext recipes NAME --plot FILE")
    rows = Table("recipe", "what it is", "published (not run here)", "measured here")
    for recipe in map(recipes.get, recipes.names()):
        published = recipe.published.text(recipe.settings.model.name) if recipe.published else ""
        rows.add_row(recipe.name, recipe.summary, published, "; ".join(map(str, recipe.measured)))
    print_table(rows)
    return 0


def _show_recipe(recipe: recipes.Recipe, picture: Path | None) -> None:
    from convnext.recipes.common.cost import cost

    estimate = cost(recipe)
    print(recipe.docs + "\n")
    if recipe.published is not None:
        print(f"Published, not run here: {recipe.published.text()}\nby {recipe.published.source}\n")
    for measured in recipe.measured:
        print(f"Measured here: {measured}\n")
    print(f"Cost: {estimate}\n\nSettings:")
    print(recipe.settings.model_dump_json(indent=2, exclude={"recipe"}))
    if picture is not None:
        from convnext.plots.curves import schedule

        steps = estimate.images // recipe.settings.batch_size if estimate.images else _STEPS_PER_EPOCH
        schedule(recipe.settings, steps, picture)
        assumed = "" if estimate.images else f" (for epochs of {steps} steps: how many they have, your images decide)"
        show(f"picture: {picture}{assumed}")
