"""``convnext convert``: weights in the layout of another library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from convnext.commands.terminal import parse
from convnext.output import say, show


@dataclass(frozen=True)
class _Convert:
    """Write ConvNeXt weights in the names and shapes of another library, without changing a value."""

    source: tyro.conf.Positional[Path]
    """Checkpoint file in any layout, a run's folder, or a checkpoint's."""
    target: tyro.conf.Positional[Path]
    """New file: .safetensors, or .pth, .pt or .bin."""
    to: Literal["official", "isotropic", "torchvision", "timm", "transformers"] = "official"
    """Layout to write; that of the source is recognised. Of a model that the library does not build a line warns."""
    weights_key: str | None = None
    """Which weights of a file that has several, such as state_dict; None takes the moving average (EMA) if there is."""
    checkpoint: Literal["last", "best"] | None = None
    """Which checkpoint of a run's folder; None takes the last, or of a run with patience the best."""


def main(args: Sequence[str]) -> int:
    """Write weights in the layout of another library: official, torchvision, timm, transformers."""
    options = parse(_Convert, args, "convert")
    from convnext.weights import files, layouts, loading

    source = files.weights_file(options.source, options.checkpoint)
    loading.check_target(options.target)
    weights = files.read_convnext(source, options.weights_key)
    converted = layouts.convert(weights.tensors, options.to, weights.layout)
    loading.write(converted, options.target, options.to)
    official = layouts.convert(weights.tensors, "official", weights.layout)
    if facts := layouts.not_built(official, options.to):
        say(f"the weights are in its layout, but {options.to} builds no ConvNeXt with {', '.join(facts)}")
    bare = "head.weight" not in official
    notes = weights.notes + ["there is no classifier in it"] * bare
    show("; ".join([f"{options.target}: {len(converted)} tensors, from {weights.layout} to {options.to}", *notes]))
    return 0
