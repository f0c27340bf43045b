"""Settings with every open choice made, so that a run can be repeated elsewhere; and its images where it wants them."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from convnext import distributed
from convnext.config import DataSettings, ModelSettings, RunSettings
from convnext.data.cache.source import open_cache
from convnext.data.datasets.load import OWN, load_splits
from convnext.data.datasets.own import own_splits
from convnext.data.splits import Splits
from convnext.devices import make_accelerator
from convnext.errors import SettingsError
from convnext.models import registry
from convnext.storage.downloads import offline
from convnext.training.precision import cpu_precision
from convnext.weights.loading import origin


def prepare(
    settings: RunSettings,
    model: nn.Module | None = None,
    data: Mapping[str, Dataset[Any]] | None = None,
    class_names: Sequence[str] | None = None,
    fetch: bool = True,
) -> tuple[RunSettings, Splits, Accelerator]:
    """The processes that train, their splits, and the settings with every open choice made; one's own model and data,
    as of `convnext.train`, take the place of those of the settings.

    Raises:
        UserError: settings or data that cannot be used, or that is missing where ``fetch`` is False; raised on
            one process of each machine.
    """
    accelerator = make_accelerator(settings)
    with distributed.reported_once(accelerator), nullcontext() if fetch else offline():
        if data is not None:
            settings = settings.replace(**{"data.name": OWN, "data.root": None})
            splits = own_splits(data, class_names, settings.data)
        else:
            with distributed.first_on_machine(accelerator):  # which downloads what is missing
                splits = load_splits(settings.data)
        if model is not None:
            settings = settings.replace(model=ModelSettings(name=registry.OWN, in_channels=splits.channels))
            check_output(model, splits, settings.data.image_size)
        resolved, splits = resolve_settings(settings, splits, accelerator)
        if settings.precision == "auto" and accelerator.device.type == "cpu":
            precision = distributed.from_main(accelerator, lambda: cpu_precision(resolved, splits))
            resolved = resolved.replace(precision=precision)
            accelerator = make_accelerator(resolved)
        return resolved, splits, accelerator


@torch.no_grad()
def check_output(model: nn.Module, splits: Splits, image_size: int) -> None:
    """Refuse, with a SettingsError, a model that does not give a logit for each class."""
    parameter = next(model.parameters(), torch.empty(0))
    images = torch.zeros(2, splits.channels, image_size, image_size, device=parameter.device)
    before = model.training
    try:
        logits = model.eval()(images)
    except Exception as error:
        shape = tuple(images.shape)
        raise SettingsError(f"model: it does not take images {shape}: {str(error).splitlines()[0]}") from error
    finally:
        model.train(before)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, len(splits.classes)):
        result = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise SettingsError(
            f"model: from 2 images it gives {result}, and should give (2, {len(splits.classes)}) logits"
        )


def resolve_settings(settings: RunSettings, splits: Splits, accelerator: Accelerator) -> tuple[RunSettings, Splits]:
    """The settings with every open choice made by the data, the machine and the model's variant, and the splits that
    fit them; SettingsError for settings that do not fit the data."""
    model = registry.resolve(settings.model, splits.channels)
    if model.in_channels != splits.channels:
        raise SettingsError(
            f"model.in_channels is {model.in_channels}, but the images of data set {settings.data.name!r} have "
            f"{splits.channels}: leave model.in_channels out"
        )
    if settings.patience is not None and splits.val is None:
        raise SettingsError(
            "patience waits for a better validation, and there is no validation split: give data.val_fraction (0.1, "
            "say), or leave patience out"
        )
    registry.check_image_size(model, settings.data.first_size)
    # Weights expect the normalisation that they were trained with.
    if (weights := origin(model)) is not None and splits.channels == len(weights.mean):
        splits = replace(splits, mean=settings.data.mean or weights.mean, std=settings.data.std or weights.std)
    paths = settings.data.root, settings.data.exclude, settings.filters_from
    root, exclude, filters_from = (path and path.absolute() for path in paths)
    data = settings.data.replace(root=root, exclude=exclude, mean=splits.mean, std=splits.std)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    resolved: RunSettings = settings.replace(model=model, data=data, precision=precision, filters_from=filters_from)
    return resolved, splits


def cached(splits: Splits, data: DataSettings, progress: bool) -> Splits:
    """The splits with their images decoded in a cache, where the settings ask for one and they are not in memory;
    CacheError where there is no room for it. The test images, which are read once, stay as they are: what is reported
    is measured on the pixels that `evaluate` and `predict` see, and not on those that were shrunk for the cache."""
    if data.cache == "none":
        return splits
    sources = {name: source for name in ("train", "val") if (source := splits.split(name)) and not source.in_memory}
    options = data.cache_image_size, data.workers, progress
    changes: dict[str, Any] = {name: open_cache(source, *options) for name, source in sources.items()}
    return replace(splits, **changes)
