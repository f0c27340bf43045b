"""``convnext recipes`` and ``models``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convnext import recipes
from convnext.commands.terminal import parse, print_table, table
from convnext.errors import SettingsError

_STEPS_PER_EPOCH = 100  # in the picture of a recipe for the user's own images


@dataclass(frozen=True)
class _Recipes:
    """List the recipes, or show one with all its settings."""

    name: tyro.conf.Positional[str | None] = None
    """Recipe to show."""
    plot: Path | None = None
    """Picture to write: the recipe's learning rate, and the side of its images where it grows, over the epochs."""


@dataclass(frozen=True)
class _Models:
    """List the models with their parameters and multiply-adds, or show one stage by stage."""

    name: tyro.conf.Positional[str | None] = None
    """Model to show."""
    image_size: int = 224
    """Side of the images in pixels."""
    throughput: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure images per second of the model named, on this machine, in evaluation."""


def recipes_command(args: Sequence[str]) -> int:
    """List the recipes, or show one with all its settings."""
    options = parse(_Recipes, args, "recipes")
    if options.name is not None:
        _show_recipe(recipes.get(options.name), options.plot)
        return 0
    if options.plot is not None:
        raise SettingsError("which recipe's schedule? convnext recipes NAME --plot FILE")
    rows = table("recipe", "what it is", "published (not run here)", "measured here")
    for recipe in map(recipes.get, recipes.names()):
        published = recipe.published.text(recipe.settings.model.name) if recipe.published else ""
        rows.add_row(recipe.name, recipe.summary, published, "; ".join(map(str, recipe.measured)))
    print_table(rows)
    return 0


def _show_recipe(recipe: recipes.Recipe, picture: Path | None) -> None:
    from convnext.recipes.common.cost import cost

    found = cost(recipe)
    print(recipe.docs + "\n")
    if recipe.published is not None:
        print(f"Published, not run here: {recipe.published.text()}\nby {recipe.published.source}\n")
    for measured in recipe.measured:
        print(f"Measured here: {measured}\n")
    print(f"Cost: {found}\n\nSettings:")
    print(recipe.settings.model_dump_json(indent=2, exclude={"recipe"}))
    if picture is not None:
        from convnext.plots.plots import schedule

        steps = found.images // recipe.settings.batch_size if found.images else _STEPS_PER_EPOCH
        schedule(recipe.settings, steps, picture)
        assumed = "" if found.images else f" (for epochs of {steps} steps: how many they have, your images decide)"
        print(f"picture: {picture}{assumed}")


def models_command(args: Sequence[str]) -> int:
    """List the models with their parameters and multiply-adds, or show one stage by stage."""
    options = parse(_Models, args, "models")
    import torch

    from convnext.config import ModelSettings
    from convnext.models import registry
    from convnext.models.summary import count_gmacs, count_parameters

    if options.throughput and options.name is None:
        raise SettingsError("throughput is measured for one model: convnext models NAME --throughput")
    for name in registry.NAMES if options.name is None else [options.name]:
        registry.check_image_size(registry.resolve(ModelSettings(name=name)), options.image_size)
    if options.name is not None:
        return _show_model(options.name, options.image_size, options.throughput)
    from convnext.weights.released import WEIGHTS

    cost_column = f"GMACs at {options.image_size}"
    rows = table("model", "depths", "dims", "parameters", cost_column, "source", "weights (top-1, published)")
    for name in registry.NAMES:
        settings = registry.resolve(ModelSettings(name=name))
        with torch.device("meta"):
            model = registry.build(settings, 1000)
        sizes = (" ".join(map(str, values or ())) for values in (settings.depths, settings.dims))
        cost = f"{count_gmacs(model, options.image_size):.2f}"
        released = (f"{tag} {found.top1 or '-'}" for tag, found in WEIGHTS.get(name, {}).items())
        parameters = f"{count_parameters(model):,}"
        rows.add_row(name, *sizes, parameters, cost, registry.source(name), ", ".join(released))
    print_table(rows)
    return 0


def _show_model(name: str, image_size: int, throughput: bool) -> int:
    import torch

    from convnext.models import registry, summary
    from convnext.models.convnext import ConvNeXt
    from convnext.weights.released import WEIGHTS

    with torch.device("meta"):
        model = registry.create_model(name)
    if isinstance(model, ConvNeXt):
        rows = table("part", "output", "parameters", "GMACs")
        for row in summary.stage_rows(model, image_size):
            rows.add_row(row.name, " x ".join(map(str, row.output)), f"{row.parameters:,}", f"{row.gmacs:.3f}")
        print_table(rows)
    if name in WEIGHTS:
        rows = table("weights", "top-1, published", "classes", "image size", "licence", "from")
        for tag, found in WEIGHTS[name].items():
            top1 = f"{found.top1} %" if found.top1 else "-"
            rows.add_row(tag, top1, f"{found.classes:,}", f"{found.image_size} px", found.licence, found.url)
        print_table(rows)
    cost = summary.count_gmacs(model, image_size)
    print(f"{name}: {summary.count_parameters(model):,} parameters, {cost:.2f} GMACs at {image_size} px")
    if throughput:
        rate = summary.images_per_second(registry.create_model(name), image_size)
        print(f"{rate:,.1f} images/s on the CPU, {torch.get_num_threads()} threads, evaluation, batch 8, fp32")
    return 0
