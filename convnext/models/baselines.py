"""What ConvNeXt is compared with: torchvision's ResNet and Swin Transformer, with stems for small images.

``patch_size`` is the stride of the stem, as in ConvNeXt:

- ResNet: 4 is the original (7x7 convolution of stride 2, max-pool); 2 and 1 are a 3x3 convolution of that stride
  without max-pool, as people use for 64 and 32 px.
- Swin: 4 is the original with windows of 7; 2 and 1 have windows of 4, as people use for 64 and 32 px.
"""

from typing import Any

from torch import nn
from torchvision import models

from convnext.errors import SettingsError


def build_baseline(
    name: str, num_classes: int = 1000, in_channels: int = 3, patch_size: int = 4, stochastic_depth: float = 0.0
) -> nn.Module:
    """Build a baseline with random weights.

    Args:
        name: a key of `convnext.models.registry.BASELINES`.
        num_classes: size of the output.
        in_channels: channels of the images.
        patch_size: stride of the stem in pixels: 4, 2 or 1.
        stochastic_depth: skip probability of the last block of a Swin; a ResNet has none.

    Returns:
        A module from images ``(N, C, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        SettingsError: another patch size.
    """
    if patch_size not in (1, 2, 4):
        raise SettingsError(f"model.patch_size: {name} has stems for 1, 2 and 4, got {patch_size}")
    if name == "swin_t":
        return _swin_t(num_classes, in_channels, patch_size, stochastic_depth)
    return _resnet(name, num_classes, in_channels, patch_size)


def _resnet(name: str, num_classes: int, in_channels: int, patch_size: int) -> nn.Module:
    model: Any = getattr(models, name)(num_classes=num_classes)
    if patch_size < 4:
        model.conv1 = nn.Conv2d(in_channels, 64, 3, stride=patch_size, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif in_channels != 3:
        model.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model  # type: ignore[no-any-return]


def _swin_t(num_classes: int, in_channels: int, patch_size: int, stochastic_depth: float) -> nn.Module:
    window = 7 if patch_size == 4 else 4
    model: Any = models.SwinTransformer(
        patch_size=[patch_size, patch_size],
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=[window, window],
        stochastic_depth_prob=stochastic_depth,
        num_classes=num_classes,
    )
    if in_channels != 3:
        model.features[0][0] = nn.Conv2d(in_channels, 96, patch_size, stride=patch_size)
    return model  # type: ignore[no-any-return]
