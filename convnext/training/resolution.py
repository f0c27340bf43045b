"""Settings with every open choice made, so that a run can be repeated elsewhere."""

from dataclasses import replace

from accelerate import Accelerator

from convnext.config import RunSettings
from convnext.data.catalog import Splits
from convnext.errors import SettingsError
from convnext.models import registry
from convnext.models.pretrained import released


def resolve(settings: RunSettings, splits: Splits, accelerator: Accelerator) -> tuple[RunSettings, Splits]:
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
    root = settings.data.root and settings.data.root.absolute()
    data = settings.data.replace(root=root, mean=splits.mean, std=splits.std)
    precision = accelerator.mixed_precision.replace("no", "fp32")
    resolved: RunSettings = settings.replace(model=model, data=data, precision=precision)
    return resolved, splits
