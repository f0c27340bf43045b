"""The published ConvNeXts as data, and what any of them costs, by formula. Importing it is cheap: no torch."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from convnext.config import ModelSettings

ConvNeXtName: TypeAlias = Literal[
    "convnext_atto",
    "convnext_femto",
    "convnext_pico",
    "convnext_nano",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
    "convnext_xlarge",
    "convnext_isotropic_small",
    "convnext_isotropic_base",
    "convnext_isotropic_large",
    "convnextv2_atto",
    "convnextv2_femto",
    "convnextv2_pico",
    "convnextv2_nano",
    "convnextv2_tiny",
    "convnextv2_base",
    "convnextv2_large",
    "convnextv2_huge",
]


@dataclass(frozen=True)
class Variant:
    """A published configuration of `convnext.models.convnext.ConvNeXt`, and where it is published."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    source: str
    patch_size: int = 4
    kernel_size: int = 7
    mlp_ratio: int = 4
    layer_scale: float | None = 1e-6
    grn: bool = False
    stem_norm: bool = True


def _v1(depths: tuple[int, ...], width: int, source: str) -> Variant:
    return Variant(depths, (width, 2 * width, 4 * width, 8 * width), source)


def _isotropic(depth: int, dim: int) -> Variant:
    source = "Liu et al. 2022, section 3.3"
    return Variant((depth,), (dim,), source, patch_size=16, layer_scale=None, stem_norm=False)


def _v2(depths: tuple[int, ...], width: int) -> Variant:
    dims = (width, 2 * width, 4 * width, 8 * width)
    return Variant(depths, dims, "Woo et al. 2023, appendix A", layer_scale=None, grn=True)


_PAPER = "Liu et al. 2022, section 3"

VARIANTS: dict[ConvNeXtName, Variant] = {
    "convnext_atto": _v1((2, 2, 6, 2), 40, "timm"),
    "convnext_femto": _v1((2, 2, 6, 2), 48, "timm"),
    "convnext_pico": _v1((2, 2, 6, 2), 64, "timm"),
    "convnext_nano": _v1((2, 2, 8, 2), 80, "timm"),
    "convnext_tiny": _v1((3, 3, 9, 3), 96, _PAPER),
    "convnext_small": _v1((3, 3, 27, 3), 96, _PAPER),
    "convnext_base": _v1((3, 3, 27, 3), 128, _PAPER),
    "convnext_large": _v1((3, 3, 27, 3), 192, _PAPER),
    "convnext_xlarge": _v1((3, 3, 27, 3), 256, _PAPER),
    "convnext_isotropic_small": _isotropic(18, 384),
    "convnext_isotropic_base": _isotropic(18, 768),
    "convnext_isotropic_large": _isotropic(36, 1024),
    "convnextv2_atto": _v2((2, 2, 6, 2), 40),
    "convnextv2_femto": _v2((2, 2, 6, 2), 48),
    "convnextv2_pico": _v2((2, 2, 6, 2), 64),
    "convnextv2_nano": _v2((2, 2, 8, 2), 80),
    "convnextv2_tiny": _v2((3, 3, 9, 3), 96),
    "convnextv2_base": _v2((3, 3, 27, 3), 128),
    "convnextv2_large": _v2((3, 3, 27, 3), 192),
    "convnextv2_huge": _v2((3, 3, 27, 3), 352),
}


def published(name: str) -> Variant | None:
    """The variant of that name, if it is one."""
    return VARIANTS.get(cast(ConvNeXtName, name))


def convnext_cost(settings: ModelSettings, image_size: int = 224, num_classes: int = 1000) -> tuple[int, int]:
    """Parameters of the ConvNeXt of these resolved settings, and its multiply-adds for one square image, layer by
    layer."""
    depths, dims = settings.depths or (), settings.dims or ()
    patch_size, kernel_size = settings.patch_size or 0, settings.kernel_size or 0
    parameters = macs = 0
    size, in_dim = image_size, settings.in_channels or 0
    whitening_stride = 2 if settings.whitening and patch_size % 4 == 0 else 1
    if settings.whitening:
        size, in_dim, channels = (size - 2) // whitening_stride + 1, 8 * in_dim, in_dim
        parameters, macs = in_dim * (4 * channels + 1), size**2 * in_dim * 4 * channels
    for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        stride = 2 if stage else patch_size // whitening_stride
        kernel = 3 if settings.pool else 2 * stride - 1 if settings.overlap else stride
        before, size = size, -(-size // stride) if settings.overlap else size // stride
        convolution = in_dim * dim * kernel**2
        norm = 2 * (dim if settings.pool or not stage else in_dim) * bool(settings.pool or stage or settings.stem_norm)
        spatial, hidden = dim * kernel_size**2, (settings.mlp_ratio or 0) * dim
        # Depthwise convolution, norm, and two linear layers with biases; layer scale and GRN where there are any.
        block = (spatial + dim) + 2 * dim + (2 * dim * hidden + hidden + dim)
        block += dim * (settings.layer_scale is not None) + 2 * hidden * bool(settings.grn)
        parameters += convolution + dim + norm + depth * block
        macs += (before if settings.pool else size) ** 2 * convolution
        macs += size**2 * depth * (spatial + 2 * dim * hidden)
        in_dim = dim
    return parameters + 2 * in_dim + (in_dim + 1) * num_classes, macs + in_dim * num_classes
