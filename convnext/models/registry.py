"""Name to model: the published variants, and one door to build any of them with changed settings."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from convnext.config import ModelSettings
from convnext.errors import SettingsError, did_you_mean
from convnext.weights.catalogue import is_weights_file

if TYPE_CHECKING:
    from torch import nn

    from convnext.models.convnext import ConvNeXt

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
    """A published configuration of `convnext.models.convnext.ConvNeXt`.

    Attributes:
        depths: blocks of each stage.
        dims: channels of each stage.
        source: where it is published.
    """

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


# torchvision's, which convnext.models.baselines builds.
BASELINES: dict[str, str] = {
    "resnet18": "He et al. 2016, torchvision",
    "resnet50": "He et al. 2016, torchvision",
    "swin_t": "Liu et al. 2021, torchvision",
}
ROADMAP = "roadmap"  # convnext.models.roadmap builds it
NAMES: tuple[str, ...] = (*VARIANTS, *BASELINES, ROADMAP)


def resolve(settings: ModelSettings, in_channels: int = 3) -> ModelSettings:
    """The settings with every None taken from the named variant; a baseline keeps only those that it has.

    Raises:
        SettingsError: unknown name, or depths and dims that do not fit each other.
    """
    channels = settings.in_channels or in_channels
    resolved: ModelSettings
    if settings.name in BASELINES:
        resolved = ModelSettings(
            name=settings.name,
            patch_size=settings.patch_size or 4,
            in_channels=channels,
            stochastic_depth=settings.stochastic_depth,
            weights=settings.weights,
        )
        return resolved
    if settings.name == ROADMAP:
        if settings.weights is not None:
            raise SettingsError("model.weights: nobody released weights of the roadmap's steps: leave it out")
        resolved = ModelSettings(
            name=settings.name,
            step=15 if settings.step is None else settings.step,
            depths=settings.depths,
            dims=settings.dims,
            patch_size=settings.patch_size or 4,
            in_channels=channels,
            stochastic_depth=settings.stochastic_depth,
            layer_scale=1e-6 if settings.layer_scale == "variant" else settings.layer_scale,
        )
        return resolved
    if settings.step is not None:
        raise SettingsError(f"model.step belongs to model 'roadmap', and the model is {settings.name!r}")
    variant = _variant(settings.name)
    if variant is None:
        raise SettingsError(f"no model is called {settings.name!r}: {did_you_mean(settings.name, NAMES)}")
    if settings.weights is not None and not is_weights_file(settings.weights):
        # Released weights fit their own architecture alone, whatever a recipe has for its short runs.
        kept = {"name", "in_channels", "stochastic_depth", "head_init_scale", "init", "weights"}
        settings = ModelSettings(**settings.model_dump(include=kept))
    resolved = settings.replace(
        depths=settings.depths or variant.depths,
        dims=settings.dims or variant.dims,
        patch_size=settings.patch_size or variant.patch_size,
        kernel_size=settings.kernel_size or variant.kernel_size,
        mlp_ratio=settings.mlp_ratio or variant.mlp_ratio,
        in_channels=channels,
        layer_scale=variant.layer_scale if settings.layer_scale == "variant" else settings.layer_scale,
        grn=variant.grn if settings.grn is None else settings.grn,
        stem_norm=variant.stem_norm if settings.stem_norm is None else settings.stem_norm,
    )
    resolved.check_stages()
    return resolved


def source(name: str) -> str:
    """Where the model of that name is published."""
    if name == ROADMAP:
        return "Liu et al. 2022, section 2: `convnext roadmap`"
    variant = _variant(name)
    return variant.source if variant else BASELINES[name]


def describe(settings: ModelSettings) -> str:
    """What the resolved settings build, in a few words."""
    if settings.name == ROADMAP:
        return f"step {settings.step} of the roadmap"
    if settings.name in BASELINES:
        return f"{settings.name} with a stem of stride {settings.patch_size}"
    depths, dims = (" ".join(map(str, sizes or ())) for sizes in (settings.depths, settings.dims))
    return f"ConvNeXt{' V2' if settings.grn else ''} of depths {depths} and dims {dims}"


def has_no_layer_scale(name: str) -> bool:
    """Whether the variant of that name is published without layer scale."""
    variant = _variant(name)
    return variant is not None and variant.layer_scale is None


def _variant(name: str) -> Variant | None:
    return next((variant for key, variant in VARIANTS.items() if key == name), None)


def check_image_size(settings: ModelSettings, image_size: int) -> None:
    """Refuse images too small for the model's strides.

    Args:
        settings: resolved settings.
        image_size: side of the images in pixels.

    Raises:
        SettingsError: the last stage's feature map would be empty.
    """
    assert settings.patch_size is not None
    stages = len(settings.depths or (0, 0, 0, 0))
    stride = settings.patch_size * 2 ** (stages - 1)
    if image_size < stride:
        raise SettingsError(
            f"images of {image_size} px are too small for {stages} stages behind a stem of patch size "
            f"{settings.patch_size}, which need {stride} px: raise data.image_size, or lower model.patch_size or the "
            f"number of stages (model.depths, model.dims)"
        )


def build(settings: ModelSettings, num_classes: int) -> "nn.Module":
    """The model of the settings, with random weights."""
    settings = resolve(settings)
    if settings.name in BASELINES:
        from convnext.models.baselines import build_baseline

        chosen = {"name", "in_channels", "patch_size", "stochastic_depth"}
        return build_baseline(num_classes=num_classes, **settings.model_dump(include=chosen))
    if settings.name == ROADMAP:
        from convnext.models.roadmap import Roadmap

        # The paper widens the base width by 1.5 on the way, and dims are ConvNeXt's.
        width = 64 if settings.dims is None else 2 * max(1, round(settings.dims[0] / 3))
        chosen = {"step", "depths", "patch_size", "in_channels", "stochastic_depth", "layer_scale"}
        return Roadmap(num_classes=num_classes, width=width, **settings.model_dump(include=chosen))
    from convnext.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=num_classes, **settings.model_dump(exclude={"name", "step", "weights"}))


@overload
def create_model(name: ConvNeXtName, num_classes: int = 1000, **settings: Any) -> "ConvNeXt": ...
@overload
def create_model(name: str, num_classes: int = 1000, **settings: Any) -> "nn.Module": ...
def create_model(name: str, num_classes: int = 1000, **settings: Any) -> "nn.Module":
    """Build a model by name.

    Args:
        name: one of `NAMES`; ``convnext models`` lists them.
        num_classes: classes of the classifier; 0 leaves a ConvNeXt's out.
        settings: any field of `convnext.config.ModelSettings`, such as ``depths`` or ``patch_size``. Without
            ``weights`` they are random; with a released tag they are downloaded once, and a classifier of other
            classes is left out with a line on standard error.

    Returns:
        A module from images ``(N, C, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        SettingsError: unknown name or setting, or an impossible value.
        UserError: the weights cannot be had, or do not fit.
    """
    chosen = resolve(ModelSettings(name=name, **settings))
    model = build(chosen, num_classes)
    if chosen.weights is not None:
        from convnext.weights.loading import start_from

        if note := start_from(model, chosen, num_classes):
            print(note, file=sys.stderr)
    return model
