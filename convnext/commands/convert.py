"""``convnext convert``: weights in the layout of another library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from convnext.commands.terminal import parse


@dataclass(frozen=True)
class _Convert:
    """Write ConvNeXt weights in the names and shapes of another library, without changing a value."""

    source: tyro.conf.Positional[Path]
    """Checkpoint file in any layout (.pth, .pt, .bin or .safetensors), or a run's folder."""
    target: tyro.conf.Positional[Path]
    """New file: .safetensors, or .pth, .pt or .bin."""
    to: Literal["official", "isotropic", "torchvision", "timm", "transformers"] = "official"
    """Layout to write; that of the source is recognised."""


def main(args: Sequence[str]) -> int:
    """Write weights in the layout of another library: official, torchvision, timm, transformers."""
    options = parse(_Convert, args, "convert")
    from convnext.weights import layouts, loading, released

    source = options.source
    if source.is_dir():
        from convnext.runs import checkpoint

        source = checkpoint.find(source) / "model.safetensors"
    loading.check_target(options.target)
    tensors = released.read_foreign(source)
    layout = layouts.detect_layout(tensors)
    loading.write(layouts.convert(tensors, options.to, layout), options.target)
    print(f"{options.target}: {len(tensors)} tensors, from {layout} to {options.to}")
    return 0
