"""Data sets of one's own program: map-style torch data sets of (image, label), as a source of images by index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from convnext.config import DataSettings
from convnext.data.datasets.load import hold_out_val, measure_statistics, take_fold
from convnext.data.images import Picture, Raw
from convnext.data.sources import ImageSource, digest
from convnext.data.splits import SPELLINGS, Splits, make_splits
from convnext.errors import DataError

_LOOKED_AT = 50  # images


@dataclass(frozen=True)
class DatasetSource(ImageSource):
    """Images of a map-style data set.

    Args:
        dataset: by index, a Pillow image or a uint8 tensor ``(C, H, W)``, and its class index; the same for an index
            each time, or an interrupted run goes on with other images.
        indices: ``(N,)``, of the images in ``dataset``.
    """

    dataset: Dataset[Any]
    indices: NDArray[np.int64]
    targets: NDArray[np.int64]
    channels: int
    split: str

    def raw(self, index: int) -> Raw:
        """The pixels."""
        image, label = self.dataset[int(self.indices[index])]
        if int(label) != self.targets[index]:
            raise DataError(
                f"{self.image_name(index)} had label {self.targets[index]} when all labels were read, and now has "
                f"{int(label)}: both have to be the same each time"
            )
        return self._pixels(image, self.image_name(index))

    def image_name(self, index: int) -> str:
        """The split and the image's number in the data set."""
        return f"{self.split}[{self.indices[index]}]"

    def fingerprint(self) -> str:
        """A digest of numbers and labels."""
        return digest(self.indices, self.targets)

    def _pixels(self, image: object, name: str) -> NDArray[np.uint8]:
        channels = self.channels
        if isinstance(image, Image.Image):
            return np.asarray(Picture(image, channels, name, max_value=self.max_value).decode())
        if (
            isinstance(image, torch.Tensor)
            and image.dtype == torch.uint8
            and image.ndim == 3
            and len(image) == channels
        ):
            pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
            return pixels
        kind = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
        raise DataError(
            f"{name} is {kind}: give a Pillow image, or a uint8 tensor ({channels}, H, W); normalisation and "
            f"augmentation are the training's"
        )


def own_splits(data: Mapping[str, Dataset[Any]], class_names: Sequence[str] | None, settings: DataSettings) -> Splits:
    """Data sets of one's own as splits, ready to train on; what is missing is as for any other data.

    Args:
        data: map-style data sets by ``"train"``, and where there are any ``"val"`` and ``"test"``.
        class_names: of the labels from 0; None takes the ``classes`` of the training set, as torchvision's have them.
        settings: how much to hold out where val or test is missing, and the statistics, where they are known.

    Raises:
        DataError: no training set, an unknown split, a label without a name, or items that are no image with a label.
    """
    if "train" not in data or not set(data) <= set(SPELLINGS):
        raise DataError(f"data: needs 'train', and may have 'val' and 'test'; it has {', '.join(map(repr, data))}")
    names = class_names if class_names is not None else getattr(data["train"], "classes", None)
    if names is None:
        raise DataError("class_names: the training set has no attribute `classes`, so give the names of its labels")
    channels = _channels(data["train"])
    sources = {}
    for split, dataset in data.items():
        targets = _targets(dataset, split)
        if not len(targets) or targets.min() < 0 or targets.max() >= len(names):
            problem = f"labels up to {targets.max()}, and {len(names)} class names" if len(targets) else "no images"
            raise DataError(f"data: {split} has {problem}")
        sources[split] = DatasetSource(dataset, np.arange(len(targets)), targets, channels, split)
    splits = make_splits(tuple(map(str, names)), sources, settings.test_fraction, val_chooses=True).configured(settings)
    return hold_out_val(measure_statistics(take_fold(splits, settings), settings), settings)


def _targets(dataset: Dataset[Any], split: str) -> NDArray[np.int64]:
    """All labels: from ``targets``, which torchvision has as they are before a ``target_transform``, where that is
    there, else from the items."""
    if isinstance(dataset, Subset):
        return _targets(dataset.dataset, split)[np.asarray(dataset.indices, np.int64)]
    length = len(dataset)  # type: ignore[arg-type]
    transform = getattr(dataset, "target_transform", None)
    try:
        if len(given := getattr(dataset, "targets", ())) == length:
            labels = np.asarray(given, np.int64)
            if transform is not None:
                labels = np.array([int(transform(label)) for label in labels.tolist()], np.int64)
            return labels
        return np.array([int(dataset[index][1]) for index in range(length)], np.int64)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"data: the items of {split} are no pairs of an image and a label ({error})") from error


def _channels(dataset: Dataset[Any]) -> int:
    """The most that an image has, of some that are spread evenly: one that is grey says nothing of the others."""
    length = len(dataset)  # type: ignore[arg-type]
    indices = np.linspace(0, length - 1, min(length, _LOOKED_AT)).astype(int).tolist()
    return max((_channels_of(dataset[index][0]) for index in indices), default=3)


def _channels_of(image: object) -> int:
    if isinstance(image, Image.Image):
        return 1 if image.mode in ("1", "L") else 3
    return int(image.shape[0]) if isinstance(image, torch.Tensor) and image.ndim == 3 else 3
