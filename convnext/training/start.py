"""The weights with which a run begins."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convnext import distributed
from convnext.config import RunSettings
from convnext.data.batch_transforms import Normalize
from convnext.data.loading.loader import AugmentedImages, raise_if_strict
from convnext.data.splits import Splits
from convnext.data.transforms import EvalTransform
from convnext.errors import DataError
from convnext.models.convnext import Whitening
from convnext.output import say
from convnext.training.filters import draw_filters
from convnext.weights.loading import start_from

_WHITENED = 2000  # images: some million patches of 2x2 pixels


def start(model: nn.Module, settings: RunSettings, splits: Splits, accelerator: Accelerator) -> None:
    """Give a new model the weights that the settings name, or, where they name none, what is computed from the training
    images, the filters of `Whitening`, and what is drawn with the covariance of other filters.

    Raises:
        UserError: weights that cannot be had or do not fit; or none of the images that were tried can be read.
    """
    if settings.model.weights is not None:
        note = start_from(model, settings.model, len(splits.classes), splits.classes)
        say(note or f"started from {settings.model.weights}")
        return
    if settings.filters_from is not None:
        say(draw_filters(model, settings.filters_from))
    for module in model.modules():
        if isinstance(module, Whitening):
            filters = distributed.from_main(accelerator, lambda: _whitening(settings, splits))
            module.load_state_dict({"weight": filters}, strict=False)


def _whitening(settings: RunSettings, splits: Splits) -> Tensor:
    """The filters that whiten images evenly taken from the training split, as evaluation sees them."""
    images = AugmentedImages(splits.train, [EvalTransform(settings.data.image_size, settings.data.center_crop)], seed=0)
    chosen = np.linspace(0, len(images), min(len(images), _WHITENED), endpoint=False, dtype=np.int64)
    samples = [images[0, index, 0] for index in chosen.tolist()]
    unreadable = [sample for sample in samples if isinstance(sample, str)]
    raise_if_strict(unreadable, settings.data.strict)
    for sample in samples:
        if isinstance(sample, Exception):
            raise sample
    pixels = [sample[0] for sample in samples if isinstance(sample, tuple)]
    if not pixels:
        raise DataError(f"none of {len(samples)} images can be read; the first: {unreadable[0]}")
    whitening = Whitening(splits.channels)
    whitening.fit(Normalize(splits.mean, splits.std)(torch.stack(pixels)))
    return whitening.weight
