"""``convnext roadmap``: the steps from ResNet-50 to ConvNeXt-T."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from convnext import recipes
from convnext.commands.terminal import Table, parse, print_table
from convnext.output import say, show

if TYPE_CHECKING:
    from convnext.models.roadmap import Step


@dataclass(frozen=True)
class _Roadmap:
    """Show the paper's way from ResNet-50 to ConvNeXt-T, step by step, and draw it; or train every step."""

    train: str | None = None
    """Recipe under which to train every step, with the same data, settings and seed."""
    epochs: int | None = None
    """Epochs of each training, in place of the recipe's."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of the recipe's data set."""
    seed: int = 0
    """Seed of every training."""
    output: Path = Path("runs")
    """Folder of the runs; a step that is finished there under the same settings is not trained again."""
    picture: Path = Path("roadmap.png")
    """Picture to write."""


def main(args: Sequence[str]) -> int:
    """Show the steps from ResNet-50 to ConvNeXt-T, draw them, or train them all."""
    options = parse(_Roadmap, args, "roadmap")
    import torch

    from convnext.models.roadmap import STEPS, Roadmap
    from convnext.models.summary import count_gmacs, count_parameters
    from convnext.plots.roadmap import plot_roadmap

    measured = [_train_step(step, options) for step in STEPS] if options.train is not None else None
    name = options.train or ""
    columns = ("step", "change", "parameters", "GMACs at 224", "paper's", "ImageNet top-1, published")
    rows = Table(*columns, *([f"top-1 on {name}, measured"] if measured else []))
    for step in STEPS:
        with torch.device("meta"):
            model = Roadmap(step.number)
        cost = f"{count_gmacs(model):.2f}"
        row = [str(step.number), step.name, f"{count_parameters(model):,}", cost, f"{step.gflops:.2f}"]
        row.append(f"{step.imagenet_top1:.2f} %" + ("" if step.adopted else " (not adopted)"))
        rows.add_row(*row, *([f"{measured[step.number]:.2f} %"] if measured else []))
    print_table(rows)
    plot_roadmap(STEPS, options.picture, measured, name)
    show(f"picture: {options.picture}")
    return 0


def _train_step(step: "Step", options: _Roadmap) -> float:
    """Test top-1 in percent of one step under the recipe."""
    from convnext.training.train import train

    assert options.train is not None
    changes: dict[str, object] = {"output": options.output, "seed": options.seed}
    changes |= {"name": f"roadmap-{options.train}-{step.number:02d}", "model.name": "roadmap"}
    optional = {"model.step": step.number, "epochs": options.epochs, "data.root": options.root}
    changes |= {name: value for name, value in optional.items() if value is not None}
    say(f"step {step.number}: {step.name}")
    return 100 * train(recipes.recipe(options.train, **changes), resume=True).report.top1
