"""The images that an export is compared, calibrated and measured with."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from convnext.config import DataSettings
from convnext.data.datasets.catalogue.folder import split_folders
from convnext.data.datasets.entries import DATASETS
from convnext.data.datasets.load import OWN, load_splits
from convnext.data.files import class_folders, has_images, image_files, list_folder, normal_form
from convnext.data.sources import ArraySource, FileSource, ImageSource, LeftOut
from convnext.data.splits import Splits
from convnext.errors import DataError
from convnext.evaluation.images import check_classes, labelled_splits
from convnext.weights.model_info import ModelInfo

_GENERATED = 36  # images


@dataclass(frozen=True)
class Evidence:
    """Images that show what an exported file does.

    Attributes:
        compared: on which the logits are compared.
        title: what to call those.
        calibration: from which int8 learns its ranges; None where there are only generated ones.
        splits: with labels, by which accuracy is measured; None where there are none.
        unmeasured: why there are none.
    """

    compared: ImageSource
    title: str
    calibration: ImageSource | None
    splits: Splits | None = None
    unmeasured: str = ""

    @property
    def choosing_split(self) -> Literal["val", "train"]:
        """The split that chooses, so that the test's images need not: the validation split, or else the training's."""
        assert self.splits is not None
        return "train" if self.splits.val is None or self.splits.val is self.splits.test else "val"

    @property
    def choosing(self) -> ImageSource:
        """The images of that split."""
        assert self.splits is not None
        source = self.splits.split(self.choosing_split)
        assert source is not None
        return source


def gather_evidence(
    info: ModelInfo, data: DataSettings | None, root: Path | None, recorded: dict[str, str]
) -> Evidence:
    """The images of a run; or those of a folder, with their labels where its class folders have names of the model's
    classes; or for released weights without a folder generated ones.

    Args:
        info: the model's classes.
        data: the run's data; None for released weights.
        root: a folder in place of the run's.
        recorded: digests of the run's images, by split.

    Raises:
        DataError: the images are missing, or a folder has none.
    """
    if root is None and data is None:
        return Evidence(_generated(info), "generated images", None, unmeasured="there are no images with labels")
    if splits := _labelled(info, data, root, recorded):
        name = "test" if splits.test_name == "test" else f"{splits.test_name} (as the test)"
        return Evidence(splits.test, f"{name} images", splits.train, splits)
    assert root is not None
    images = _unlabelled(info, data or DataSettings(), root)
    reason = f"{root} has no class folders with the names of the model's classes"
    return Evidence(images, f"images of {root}", images, unmeasured=reason)


def _labelled(info: ModelInfo, data: DataSettings | None, root: Path | None, recorded: dict[str, str]) -> Splits | None:
    settings = data or DataSettings(mean=info.mean, std=info.std)
    if root is None:
        return load_splits(settings)
    settings = settings.replace(root=root)
    folders, _ = split_folders(root)
    names = {name for path in folders.values() for name in class_folders(path) if has_images(path / name)}
    if names and set(map(normal_form, names)) <= set(map(normal_form, info.classes)):
        return labelled_splits(settings, folders, info, "test" if "train" in folders else None, recorded)[0]
    if data is None:  # ImageNet's folders are called by numbers, in the order of its classes
        return load_splits(settings) if len(names) == len(info.classes) else None
    entry = DATASETS.get(data.name)
    without_root = data.name in ("folder", OWN) or (entry is not None and not (entry.files or entry.instructions))
    if without_root or list_folder(root, LeftOut())[1]:
        return None
    splits = load_splits(settings)
    check_classes(info, splits.classes, root)
    return splits


def _unlabelled(info: ModelInfo, data: DataSettings, root: Path) -> ImageSource:
    left_out = LeftOut()
    paths = sorted(os.fsencode(os.path.relpath(path, root)) for path in image_files(root, left_out))
    if not paths:
        raise DataError("; ".join((f"folder {root} has no images", *left_out.lines())))
    files = FileSource(np.array(paths), np.zeros(len(paths), np.int64), info.channels, root, left_out)
    return files.configured(data)


def _generated(info: ModelInfo) -> ImageSource:
    """Images of coloured squares, of many sizes of square."""
    random, size = np.random.default_rng(0), info.image_size
    images = np.empty((_GENERATED, size, size, info.channels), np.uint8)
    for number, image in enumerate(images):
        edge = 1 + number % max(2, size // 8)
        squares = random.integers(0, 256, (-(-size // edge), -(-size // edge), info.channels), np.uint8)
        image[:] = squares.repeat(edge, 0).repeat(edge, 1)[:size, :size]
    return ArraySource(images, np.zeros(_GENERATED, np.int64), info.channels)
