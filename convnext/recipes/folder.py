"""Your own images: resolution, stem, model, epochs and regularisation are chosen by them.

Looks at how many images there are to train with and how large they are, and prints what it chooses and why. What you
set stays, and the other choices follow it. The choice depends on the images alone, so it is the same on every machine,
but for this: with few photographs it starts from released weights where they are in the cache or can be downloaded, and
image size, epochs and learning rate follow; ``--model.weights none`` starts from random weights everywhere.

Command: ``convnext train folder --data.root DIR``, where DIR has ``train/<class>/*`` and optionally ``val/`` and
``test/``, or ``<class>/*`` alone.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any, TypeAlias

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.errors import UserError
from convnext.models import registry
from convnext.output import counted
from convnext.recipes import not_given
from convnext.storage.downloads import is_offline
from convnext.weights import catalogue, released
from convnext.weights.files import run_info

if TYPE_CHECKING:
    from convnext.data.sources import ImageSource

SETTINGS = RunSettings(
    epochs=60,
    batch_size=32,
    ema_decay=0.999,
    model=ModelSettings(
        name="convnext_atto", stochastic_depth=0.05, layer_scale=1.0, init="torch", weights=catalogue.AUTO
    ),
    data=DataSettings(name="folder", image_size=128),
    augment=AugmentSettings(crop_scale=(0.35, 1.0), policy="trivialaugment", random_erasing=0.1),
    optimizer=OptimizerSettings(lr=1e-3, reference_batch_size=64, warmup_epochs=5, clip_norm=1.0),
)

_SIZES_READ = 200  # images whose headers are read
_SMALL = 40  # pixels up to which images keep their own size, and have three stages
_CLOSE = 100  # pixels up to which images are trained on close to their own size
# Images below which trained weights are worth their download: in "Rethinking ImageNet Pre-training" (He et al. 2018)
# random ones come as far with 10,000 images, and not with 3,500; and as many a class as CIFAR-100 has.
_FEW, _FEW_A_CLASS = 10_000, 500
_LONG = 100  # epochs from which on an image is seen often enough to be learned by heart


@dataclass(frozen=True)
class _Facts:
    """What the choices depend on: images to train with, without those held out, and the median of their shorter sides
    in pixels."""

    images: int
    classes: int
    channels: int
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
        weights = settings.model.weights
        return settings.replace(**{"model.weights": None if weights == catalogue.AUTO else weights}), []
    notes = [
        f"chosen by the data, {facts.images:,} images in {facts.classes} classes to train with, shorter side "
        f"{facts.shorter_edge} px in the median:"
    ]
    chosen = settings
    if settings.model.weights == catalogue.AUTO:
        changes, reason = _weights(settings, facts, given)
        chosen = chosen.replace(**changes)
        notes.append(f"  model.weights {changes['model.weights'] or 'none'}: {reason}")
    for rule in (_resolution, _model, _stem, _batch, _epochs, _regularisation, _average):
        changes, reason = rule(chosen, facts)
        if changes := not_given(changes, given):
            chosen = chosen.replace(**changes)
            notes.append(f"  {', '.join(f'{name} {_shown(value)}' for name, value in changes.items())}: {reason}")
    return chosen, notes


def _look(data: DataSettings) -> _Facts | None:
    from convnext.data.datasets.load import exclude_images, hold_out_val, read_splits, take_fold

    splits = hold_out_val(take_fold(exclude_images(read_splits(data), data), data), data)
    source = splits.train
    step = max(1, len(source) // _SIZES_READ)
    indices = range(0, step * min(len(source), _SIZES_READ), step)
    edges = [edge for index in indices if (edge := _shorter_edge(source, index))]
    return _Facts(len(source), len(splits.classes), splits.channels, median_low(edges)) if edges else None


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


def _weights(settings: RunSettings, facts: _Facts, given: Collection[str]) -> tuple[dict[str, Any], str]:
    """What ``model.weights auto`` comes to. Weights are for 224 px: small images would be mostly interpolated."""
    random: dict[str, Any] = {"model.weights": None}
    size = settings.data.image_size if "data.image_size" in given else facts.shorter_edge
    if facts.images >= max(_FEW, _FEW_A_CLASS * facts.classes):
        return random, "there are enough images to learn from"
    if facts.channels != 3 or size <= _CLOSE:
        return random, f"released ones are for colour images of more than {_CLOSE} px"
    own = settings.model.name != SETTINGS.model.name or "model.name" in given
    name = settings.model.name if own else "convnext_tiny"
    if shape := sorted(name for name in given if name in registry.ARCHITECTURE):
        return random, f"released ones fit no other architecture than their own, and {shape[0]} is given"
    tag = catalogue.permissive_tag(name)
    if tag is None:
        return random, f"of {name} none are released under a licence that permits any use"
    size_mb = 4e-6 * registry.cost(registry.resolve(ModelSettings(name=name)))[0]
    about = f"{name}, {size_mb:.0f} MB, licence {catalogue.find(name, tag).licence}"
    if (problem := _problem(settings, name, tag)) is not None:
        return random, f"trained from scratch, for {tag} ({about}) cannot be had: {problem}"
    if not released.is_cached(name, tag):
        about += "; not here yet: would be downloaded, or where that fails, trained from scratch"
    chosen = {"model.name": name, "model.weights": tag}
    return chosen, f"few images learn more from trained weights ({about}); none for random ones"


def _problem(settings: RunSettings, name: str, tag: str) -> str | None:
    """Why released weights cannot be had, if they cannot; with several processes, as the main one finds it."""

    def attempt() -> str | None:
        try:
            released.fetch_quickly(name, tag)
        except UserError as error:
            return str(error)
        return None

    if is_offline() and not released.is_cached(name, tag):
        return None
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return attempt()
    from convnext import distributed
    from convnext.devices import make_accelerator

    return distributed.from_main(make_accelerator(settings), attempt)


def _resolution(settings: RunSettings, facts: _Facts) -> tuple[dict[str, Any], str]:
    if settings.model.weights is not None:
        info = run_info(settings.model.weights)
        return {"data.image_size": info.image_size if info else 224}, "what the weights were trained with"
    if facts.shorter_edge <= _SMALL:
        unit = 4 if facts.shorter_edge <= 24 else 8  # the strides of three stages behind stems of patch size 1 and 2
        return {"data.image_size": max(8, unit * -(-facts.shorter_edge // unit))}, "as large as the images are"
    if facts.shorter_edge <= _CLOSE:
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
    return {"batch_size": size}, f"{counted(facts.images // size, 'step')} an epoch"


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
    return {"ema_decay": round(decay, 4)}, f"averages the weights over about a tenth of the {counted(steps, 'step')}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
