"""``convnext recipes``, ``models`` and ``datasets``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convnext import recipes
from convnext.commands.terminal import parse, print_table, table
from convnext.errors import SettingsError, did_you_mean


@dataclass(frozen=True)
class _Recipes:
    """List the recipes, or show one with all its settings."""

    name: tyro.conf.Positional[str | None] = None
    """Recipe to show."""


@dataclass(frozen=True)
class _Models:
    """List the models with their parameters and multiply-adds, or show one stage by stage."""

    name: tyro.conf.Positional[str | None] = None
    """Model to show."""
    image_size: int = 224
    """Side of the images in pixels."""
    throughput: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure images per second of the model named, on this machine, in evaluation."""


@dataclass(frozen=True)
class _Datasets:
    """List the data sets, or write one as a folder of PNG files."""

    name: tyro.conf.Positional[str | None] = None
    """Data set to write."""
    to_folder: Path | None = None
    """New folder to write: train/<class>/*.png and test/<class>/*.png."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of the data set, where it needs one."""


def recipes_command(args: Sequence[str]) -> int:
    """List the recipes, or show one with all its settings."""
    options = parse(_Recipes, args, "recipes")
    if options.name is not None:
        recipe = recipes.get(options.name)
        print(f"{recipe.docs}\n\nReaches: {recipe.expected}\n\nSettings:")
        print(recipe.settings.model_dump_json(indent=2, exclude={"recipe"}))
        return 0
    rows = table("recipe", "what it is", "reaches")
    for recipe in map(recipes.get, recipes.names()):
        rows.add_row(recipe.name, recipe.summary, str(recipe.expected))
    print_table(rows)
    return 0


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
    from convnext.models.weights import WEIGHTS

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
    from convnext.models.weights import WEIGHTS

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


def datasets_command(args: Sequence[str]) -> int:
    """List the data sets, or write one as a folder of images."""
    options = parse(_Datasets, args, "datasets")
    from convnext.config import DataSettings
    from convnext.data.catalog import DATASETS, export_folder, load_splits

    if options.name is None and options.to_folder is not None:
        raise SettingsError("to-folder writes one data set: convnext datasets NAME --to-folder DIR")
    if options.name is None:
        rows = table("data set", "what it is")
        for name, dataset in DATASETS.items():
            rows.add_row(name, dataset.summary)
        print_table(rows)
        return 0
    if options.name not in DATASETS:
        raise SettingsError(f"no data set is called {options.name!r}: {did_you_mean(options.name, DATASETS)}")
    if options.to_folder is None:
        print(f"{options.name}: {DATASETS[options.name].summary}")
        return 0
    export_folder(load_splits(DataSettings(name=options.name, root=options.root)), options.to_folder)
    print(options.to_folder)
    return 0
