"""Your own images: resolution, stem, model, epochs and regularisation are chosen by them.

Looks at how many images there are to train with and how large they are, and prints what it chooses and why. What you
set stays, and the other choices follow it; a value equal to the one shown here counts as not set. The choice depends on
the images alone, so it is the same on every machine.

With few images, start from released weights: ``--model.name convnext_tiny --model.weights in22k_ft_in1k``; image size,
epochs and learning rate follow.

Command: ``convnext train folder --data.root DIR``, where DIR has ``train/<class>/*`` and optionally ``val/`` and
``test/``, or ``<class>/*`` alone.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any, TypeAlias

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.models import registry
from convnext.recipes import not_given
from convnext.weights.files import run_info

if TYPE_CHECKING:
    from convnext.data.sources import ImageSource

SETTINGS = RunSettings(
    epochs=60,
    batch_size=32,
    ema_decay=0.999,
    model=ModelSettings(name="convnext_atto", stochastic_depth=0.05, layer_scale=1.0, init="torch"),
    data=DataSettings(name="folder", image_size=128),
    augment=AugmentSettings(crop_scale=(0.35, 1.0), policy="trivialaugment", random_erasing=0.1),
    optimizer=OptimizerSettings(lr=1e-3, reference_batch_size=64, warmup_epochs=5, clip_norm=1.0),
)

_SIZES_READ = 200  # images whose headers are read
_SMALL = 40  # pixels up to which images keep their own size, and have three stages
_LONG = 100  # epochs from which on an image is seen often enough to be learned by heart


@dataclass(frozen=True)
class _Facts:
    """What the choices depend on: images to train with, without those held out, and the median of their shorter sides
    in pixels."""

    images: int
    classes: int
    shorter_edge: int


# Settings by dotted name, and why. A rule may look at what the rules before it decide, and at nothing that the rules
# after it do: then choosing once more changes nothing.
_Rule: TypeAlias = Callable[[RunSettings, _Facts], tuple[dict[str, Any], str]]


def choose(settings: RunSettings, given: Collection[str]) -> tuple[RunSettings, list[str]]:
    """Choose the settings that are not among the user's (``given``, dotted names) by the images.

    Returns:
        The settings, and a line for each choice; unchanged and none where there is no folder of images to look at, or
        no image in it whose size can be read.

    Raises:
        UserError: a folder that cannot be trained on, or an unknown model.
    """
    facts = _look(settings.data) if settings.data.name == "folder" and settings.data.root is not None else None
    if facts is None:
        return settings, []
    notes = [
        f"chosen by the data, {facts.images:,} images in {facts.classes} classes to train with, shorter side "
        f"{facts.shorter_edge} px in the median:"
    ]
    chosen = settings
    for rule in (_resolution, _model, _stem, _batch, _epochs, _regularisation, _average):
        changes, reason = rule(chosen, facts)
        if changes := not_given(changes, given):
            chosen = chosen.replace(**changes)
            notes.append(f"  {', '.join(f'{name} {_shown(value)}' for name, value in changes.items())}: {reason}")
    return chosen, notes


def _look(data: DataSettings) -> _Facts | None:
    from convnext.data.datasets.load import exclude_images, hold_out_val, read_splits

    splits = hold_out_val(exclude_images(read_splits(data), data), data)
    source = splits.train
    step = max(1, len(source) // _SIZES_READ)
    indices = range(0, step * min(len(source), _SIZES_READ), step)
    edges = [edge for index in indices if (edge := _shorter_edge(source, index))]
    return _Facts(len(source), len(splits.classes), median_low(edges)) if edges else None


def _shorter_edge(source: "ImageSource", index: int) -> int | None:
    """Shorter side of an image in pixels; None where it cannot be read."""
    from convnext.data.formats import open_image, silent

    try:
        raw = source.raw(index)
        if not isinstance(raw, bytes):
            return int(min(raw.shape[:2]))
        with silent:
            return min(open_image(raw).size)
    except Exception:  # Pillow's readers raise OSError, SyntaxError, struct.error, ...; training names the image
        return None


def _resolution(settings: RunSettings, facts: _Facts) -> tuple[dict[str, Any], str]:
    if settings.model.weights is not None:
        info = run_info(settings.model.weights)
        return {"data.image_size": info.image_size if info else 224}, "what the weights were trained with"
    if facts.shorter_edge <= _SMALL:
        unit = 4 if facts.shorter_edge <= 24 else 8  # the strides of three stages behind stems of patch size 1 and 2
        return {"data.image_size": max(8, unit * -(-facts.shorter_edge // unit))}, "as large as the images are"
    if facts.shorter_edge <= 100:
        return {"data.image_size": 64}, "close to the images' size"
    by_count = 128 if facts.images < 5_000 else 160 if facts.images < 50_000 else 224
    size = next(size for size in (224, 160, 128) if size == 128 or size <= min(by_count, facts.shorter_edge))
    return {"data.image_size": size}, f"as much as {facts.images:,} images can use, and have"


def _model(settings: RunSettings, facts: _Facts) -> tuple[dict[str, Any], str]:
    own = SETTINGS.model
    model = settings.model
    if model.weights is not None or (model.name, model.depths, model.dims) != (own.name, own.depths, own.dims):
        return {}, ""
    if settings.data.image_size <= _SMALL:
        sizes: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = (
            (5_000, (1, 1, 2), (32, 64, 128)),
            (20_000, (1, 3, 1), (48, 96, 192)),
        )
        depths, dims = next((size[1:] for size in sizes if facts.images < size[0]), ((1, 3, 1), (64, 128, 256)))
        return {"model.depths": depths, "model.dims": dims}, "three stages for small images, wider for more"
    variants = ((5_000, "atto"), (20_000, "femto"), (50_000, "pico"), (200_000, "nano"))
    size_name = next((name for most, name in variants if facts.images < most), "tiny")
    return {"model.name": f"convnext_{size_name}"}, "more images can teach a larger model"


def _stem(settings: RunSettings, _: _Facts) -> tuple[dict[str, Any], str]:
    if settings.model.weights is not None:
        return {}, ""
    model = registry.resolve(settings.model)
    if model.patch_size is None:  # a model without that setting
        return {}, ""
    stages = len(model.depths or (0, 0, 0, 0))
    patch_size, last = model.patch_size, settings.data.image_size // 2 ** (stages - 1)
    while patch_size > 1 and last // patch_size < 4:
        patch_size //= 2
    positions = last // patch_size
    return {"model.patch_size": patch_size}, f"leaves the last stage {positions}x{positions} positions"


def _batch(_: RunSettings, facts: _Facts) -> tuple[dict[str, Any], str]:
    wanted = min(max(facts.images // 32, 16), 128)
    size = min(1 << (wanted.bit_length() - 1), facts.images)
    return {"batch_size": size}, f"{facts.images // size:,} steps an epoch"


def _epochs(settings: RunSettings, facts: _Facts) -> tuple[dict[str, Any], str]:
    epochs = min(max(150 * (1_000 / facts.images) ** (1 / 3), 30), 200)
    if settings.model.weights is None:
        return {"epochs": 10 * round(epochs / 10)}, "fewer images are seen more often"
    return {"epochs": min(max(round(epochs / 5), 10), 30)}, "trained weights need few"


def _regularisation(settings: RunSettings, _: _Facts) -> tuple[dict[str, Any], str]:
    if settings.model.weights is not None:
        return {"optimizer.lr": 2e-4, "model.stochastic_depth": 0.1}, "trained weights change little"
    if settings.data.image_size <= _SMALL:
        mild = {"augment.crop_scale": (0.6, 1.0), "augment.policy": "none", "augment.random_erasing": 0.0}
        return mild | {"model.stochastic_depth": 0.0}, "small images have little that can be spared"
    small = settings.model.name in ("convnext_atto", "convnext_femto")
    changes: dict[str, Any] = {"model.stochastic_depth": 0.05 if small else 0.1}
    if settings.epochs < _LONG:
        return changes, "by the size of the model"
    changes |= {
        "augment.random_erasing": 0.25,
        "augment.mixup": 0.2,
        "augment.cutmix": 1.0,
        "augment.mix_probability": 0.5,
    }
    return changes, "every image is seen many times"


def _average(settings: RunSettings, facts: _Facts) -> tuple[dict[str, Any], str]:
    steps = settings.epochs * max(1, facts.images // settings.batch_size)
    decay = min(max(1 - 10 / steps, 0.9), 0.9999)
    return {"ema_decay": round(decay, 4)}, f"averages the weights over about a tenth of the {steps:,} steps"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
