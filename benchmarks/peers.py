"""Models of others, as the benchmarks compare them."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def timm_convnext(
    depths: Sequence[int],
    dims: Sequence[int],
    patch_size: int,
    num_classes: int,
    in_channels: int = 3,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """timm's ConvNeXt with timm's initial weights. It has four stages and a stem of stride 4: others are put in or
    taken out."""
    from timm.models.convnext import ConvNeXt

    missing = 4 - len(depths)
    model: Any = ConvNeXt(
        in_chans=in_channels,
        num_classes=num_classes,
        depths=(*depths, *[0] * missing),
        dims=(*dims, *[dims[-1]] * missing),
        drop_path_rate=stochastic_depth,
    )
    model.stem[0] = nn.Conv2d(in_channels, dims[0], patch_size, patch_size)
    nn.init.trunc_normal_(model.stem[0].weight, std=0.02)
    nn.init.zeros_(model.stem[0].bias)
    model.stages = model.stages[: len(depths)]
    peer: nn.Module = model
    return peer


def torchvision_convnext(depths: Sequence[int], dims: Sequence[int], num_classes: int) -> nn.Module:
    """torchvision's ConvNeXt with torchvision's initial weights. Its stem's stride is always 4."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = zip(dims, [*dims[1:], None], depths, strict=True)
    model: nn.Module = ConvNeXt([CNBlockConfig(*each) for each in widths], num_classes=num_classes)
    return model
