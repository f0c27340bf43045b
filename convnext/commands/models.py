"""``convnext models``: the models that there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from convnext.commands.terminal import Flag, Table, parse, print_table
from convnext.config import ModelSettings
from convnext.errors import SettingsError
from convnext.models import registry
from convnext.models.variants import published
from convnext.weights.catalogue import WEIGHTS

_STATED_SIZE = 224  # pixels of the images of which the registry states the cost


@dataclass(frozen=True)
class _Models:
    """List the models with their parameters and multiply-adds, or show one stage by stage.

    Besides those listed, `timm:NAME` and `torchvision:NAME` are any classifier of these libraries.
    """

    name: tyro.conf.Positional[str | None] = None
    """Model to show."""
    image_size: int = _STATED_SIZE
    """Side of the images in pixels."""
    throughput: Flag = False
    """Measure images per second of the model named, on this machine, in evaluation."""
    library: Literal["timm", "torchvision"] | None = None
    """List the names of that library's models instead."""


def main(args: Sequence[str]) -> int:
    """List the models with their parameters and multiply-adds, or show one stage by stage."""
    options = parse(_Models, args, "models")
    if options.throughput and options.name is None:
        raise SettingsError("throughput is measured for one model: convnext models NAME --throughput")
    if options.name is not None and options.library is not None:
        name = options.name.rpartition(":")[2]
        raise SettingsError(
            f"--library lists a library's models, and {options.name} is one model: give {options.library}:{name}, or "
            f"leave it out"
        )
    if options.name is not None:
        _show_model(options.name, options.image_size, options.throughput)
    elif options.library is not None:
        print("\n".join(registry.list_models(options.library)))
    else:
        _list_models(options.image_size)
    return 0


def _list_models(image_size: int) -> None:
    columns = ("model", "depths", "dims", "parameters", f"GMACs at {image_size}", "source")
    rows = Table(*columns, "weights (top-1, published)")
    for name, entry in registry.entries().items():
        variant = published(name)
        depths, dims = (
            " ".join(map(str, sizes)) for sizes in ((variant.depths, variant.dims) if variant else ((), ()))
        )
        parameters, gmacs = entry.parameters, entry.gmacs
        if image_size != _STATED_SIZE:
            settings = registry.resolve(ModelSettings(name=name))
            registry.check_image_size(settings, image_size)
            parameters, macs = registry.cost(settings, image_size)
            gmacs = macs / 1e9
        released = (f"{tag} {weights.top1 or '-'}" for tag, weights in WEIGHTS.get(name, {}).items())
        cost = ["" if parameters is None else f"{parameters:,}", "" if gmacs is None else f"{gmacs:.2f}"]
        rows.add_row(name, depths, dims, *cost, entry.source, ", ".join(released))
    print_table(rows)


def _show_model(name: str, image_size: int, throughput: bool) -> None:
    import torch

    from convnext.models import summary
    from convnext.models.convnext import ConvNeXt

    registry.check_image_size(registry.resolve(ModelSettings(name=name)), image_size)
    with torch.device("meta"):
        model = registry.create_model(name)
    if isinstance(model, ConvNeXt):
        rows = Table("layers", "output", "parameters", "GMACs")
        for row in summary.stage_rows(model, image_size):
            rows.add_row(row.name, " x ".join(map(str, row.output)), f"{row.parameters:,}", f"{row.gmacs:.3f}")
        print_table(rows)
    if name in WEIGHTS:
        rows = Table("weights", "top-1, published", "classes", "image size", "licence", "from")
        for tag, weights in WEIGHTS[name].items():
            top1 = f"{weights.top1} %" if weights.top1 else "-"
            rows.add_row(tag, top1, f"{weights.classes:,}", f"{weights.image_size} px", weights.licence, weights.url)
        print_table(rows)
    cost = summary.count_gmacs(model, image_size)
    print(f"{name}: {summary.count_parameters(model):,} parameters, {cost:.2f} GMACs at {image_size} px")
    if throughput:
        rate = summary.images_per_second(registry.create_model(name), image_size)
        print(f"{rate:,.1f} images/s on the CPU, {torch.get_num_threads()} threads, evaluation, batch 8, fp32")
