"""Settings with every open choice made, so that a run can be repeated elsewhere; and its images where it wants them."""

from collections.abc import Callable, Mapping, Sequence
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
from convnext.runs.folder import absolute_paths
from convnext.storage.downloads import offline
from convnext.training.precision import cpu_precision
from convnext.weights.files import weights_path
from convnext.weights.loading import origin


def prepare(
    settings: RunSettings,
    model: nn.Module | None = None,
    data: Mapping[str, Dataset[Any]] | None = None,
    class_names: Sequence[str] | None = None,
    fetch: bool = True,
    begun: Callable[[RunSettings], RunSettings | None] | None = None,
) -> tuple[RunSettings, Splits, Accelerator]:
    """The processes that train, their splits, and the settings with every open choice made; one's own model and data,
    as of `convnext.train`, take the place of those of the settings.

    Args:
        settings: what to do.
        model: as of `convnext.train`.
        data: as of `convnext.train`.
        class_names: as of `convnext.train`.
        fetch: whether data that is not there may be downloaded.
        begun: gives the settings of the run that goes on under such ones, resolved but for a ``precision`` that is
            "auto", on the main process; None where no run does. Without it a new run begins.

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
            for size in settings.data.sizes:
                check_output(model, splits, size)
        resolved, splits = resolve_settings(settings, splits, accelerator, goes_on=begun is not None)
        if begun is None:
            check_cache(settings.data, splits)
        if settings.precision == "auto":
            precision = distributed.from_main(accelerator, lambda: _precision(resolved, splits, accelerator, begun))
            if precision != resolved.precision:
                resolved = resolved.replace(precision=precision)
                accelerator = make_accelerator(resolved)
        return resolved, splits, accelerator


def _precision(
    resolved: RunSettings,
    splits: Splits,
    accelerator: Accelerator,
    begun: Callable[[RunSettings], RunSettings | None] | None,
) -> str:
    """What precision "auto" comes to: in a run that goes on, which is not measured anew, what it was."""
    if begun is not None and (before := begun(resolved.replace(precision="auto"))) is not None:
        return before.precision
    return cpu_precision(resolved, splits) if accelerator.device.type == "cpu" else resolved.precision


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


def resolve_settings(
    settings: RunSettings, splits: Splits, accelerator: Accelerator, goes_on: bool = False
) -> tuple[RunSettings, Splits]:
    """The settings with every open choice made by the data, the machine and the model's variant, and the splits that
    fit them. A run that ``goes_on`` does not need the file or run any more whose weights it started from.

    Raises:
        SettingsError: settings that do not fit the data.
    """
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
    for size in settings.data.sizes:
        registry.check_image_size(model, size)
    # Weights expect the normalisation that they were trained with.
    data, path = settings.data, weights_path(model.weights)
    recorded = goes_on and ((data.mean is not None and data.std is not None) or (path and not path.exists()))
    weights = None if recorded else origin(model)
    if weights is not None and splits.channels == len(weights.mean):
        splits = replace(splits, mean=data.mean or weights.mean, std=data.std or weights.std)
    data = data.replace(mean=splits.mean, std=splits.std)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    return absolute_paths(settings.replace(model=model, data=data, precision=precision)), splits


def check_cache(data: DataSettings, splits: Splits) -> None:
    """Refuse, with a SettingsError, a cache of smaller images than training and validation would make of the files."""
    images = [source for source in (splits.train, splits.val) if source is not None and not source.in_memory]
    needed = round(data.image_size / data.center_crop)
    if data.cache == "disk" and images and needed > data.cache_image_size:
        raise SettingsError(
            f"data.cache disk keeps images of {data.cache_image_size} px, which would be enlarged: evaluation takes "
            f"{data.image_size} px, a share of {data.center_crop:g}, of {needed}: raise data.cache_image_size to "
            f"{needed}, or leave data.cache out"
        )


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
