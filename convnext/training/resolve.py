"""Settings with every open choice made, so that a run can be repeated elsewhere; and its images where it wants them."""

from dataclasses import replace

from accelerate import Accelerator

from convnext.config import DataSettings, RunSettings
from convnext.data.cache.source import open_cache
from convnext.data.datasets.load import Splits
from convnext.errors import SettingsError
from convnext.models import registry
from convnext.weights.loading import released


def resolve_settings(settings: RunSettings, splits: Splits, accelerator: Accelerator) -> tuple[RunSettings, Splits]:
    """The settings with every open choice made by the data, the machine and the model's variant, and the splits that
    fit them.

    Raises:
        SettingsError: settings that do not fit the data.
    """
    model = registry.resolve(settings.model, splits.channels)
    if model.in_channels != splits.channels:
        raise SettingsError(
            f"model.in_channels is {model.in_channels}, but the images of data set {settings.data.name!r} have "
            f"{splits.channels}: leave model.in_channels out"
        )
    registry.check_image_size(model, settings.data.start_size or settings.data.image_size)
    # Released weights expect the normalisation that they were trained with.
    if (weights := released(model)) is not None and splits.channels == 3:
        splits = replace(splits, mean=settings.data.mean or weights.mean, std=settings.data.std or weights.std)
    root, exclude = (path and path.absolute() for path in (settings.data.root, settings.data.exclude))
    data = settings.data.replace(root=root, exclude=exclude, mean=splits.mean, std=splits.std)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    resolved: RunSettings = settings.replace(model=model, data=data, precision=precision)
    return resolved, splits


def cached(splits: Splits, data: DataSettings, progress: bool) -> Splits:
    """The splits with their images decoded in a cache, where the settings ask for one and they are not in memory.

    Raises:
        CacheError: there is no room for it.
    """
    if data.cache == "none":
        return splits
    sources = [source for source in (splits.train, splits.val, splits.test) if source and not source.in_memory]
    options = data.cache_image_size, data.workers, progress
    opened = {id(source): open_cache(source, *options) for source in sources}
    return replace(
        splits,
        train=opened.get(id(splits.train), splits.train),
        val=opened.get(id(splits.val), splits.val),
        test=opened.get(id(splits.test), splits.test),
    )
