"""What ConvNeXt is compared with: torchvision's ResNet and Swin Transformer, with stems for small images.

``patch_size`` is the stride of the stem, as in ConvNeXt:

- ResNet: 4 is the original (7x7 convolution of stride 2, max-pool); 2 and 1 are a 3x3 convolution of that stride
  without max-pool, as people use for 64 and 32 px.
- Swin: 4 is the original with windows of 7; 2 and 1 have windows of 4, as people use for 64 and 32 px.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from torchvision import models

from convnext.errors import SettingsError
from convnext.models.registry import register_model


@register_model("resnet18", source="He et al. 2016, torchvision", parameters=11_689_512, gmacs=1.814)
def resnet18(num_classes: int = 1000, in_channels: int = 3, patch_size: int = 4) -> nn.Module:
    """ResNet-18, from images ``(N, C, H, W)`` to logits ``(N, num_classes)``; see the module."""
    return _with_stem(models.resnet18(num_classes=num_classes), in_channels, patch_size)


@register_model("resnet50", source="He et al. 2016, torchvision", parameters=25_557_032, gmacs=4.089)
def resnet50(num_classes: int = 1000, in_channels: int = 3, patch_size: int = 4) -> nn.Module:
    """ResNet-50, from images ``(N, C, H, W)`` to logits ``(N, num_classes)``; see the module."""
    return _with_stem(models.resnet50(num_classes=num_classes), in_channels, patch_size)


@register_model("swin_t", source="Liu et al. 2021, torchvision", parameters=28_288_354, gmacs=4.491)
def swin_t(
    num_classes: int = 1000,
    in_channels: int = 3,
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    patch_size: int = 4,
    stochastic_depth: float = 0.0,
) -> nn.Module:
    """Swin-T, or one of other depths and dims, with heads of 32 channels, from images ``(N, C, H, W)`` to logits
    ``(N, num_classes)``; see the module."""
    _check_patch_size("swin_t", patch_size)
    if dims[0] % 32 or any(next_dim != 2 * dim for dim, next_dim in pairwise(dims)):
        raise SettingsError(f"model.dims: swin_t has a multiple of 32, doubled from stage to stage, got {list(dims)}")
    window = 7 if patch_size == 4 else 4
    model: Any = models.SwinTransformer(
        patch_size=[patch_size, patch_size],
        embed_dim=dims[0],
        depths=list(depths),
        num_heads=[dim // 32 for dim in dims],
        window_size=[window, window],
        stochastic_depth_prob=stochastic_depth,
        num_classes=num_classes,
    )
    if in_channels != 3:
        model.features[0][0] = nn.Conv2d(in_channels, dims[0], patch_size, stride=patch_size)
    return model  # type: ignore[no-any-return]


def _with_stem(model: Any, in_channels: int, patch_size: int) -> nn.Module:
    _check_patch_size("a ResNet", patch_size)
    if patch_size < 4:
        model.conv1 = nn.Conv2d(in_channels, 64, 3, stride=patch_size, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model  # type: ignore[no-any-return]


def _check_patch_size(name: str, patch_size: int) -> None:
    if patch_size not in (1, 2, 4):
        raise SettingsError(f"model.patch_size: {name} has stems for 1, 2 and 4, got {patch_size}")
