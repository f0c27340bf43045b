"""Caltech-101 and Caltech-256.

torchvision's classes know how many images there are, which is wrong once one is removed: the folders are listed here.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from convnext.data.datasets.entries import Dataset, File, register_dataset
from convnext.data.datasets.fetching import find
from convnext.data.datasets.listing import human_names, list_images, subfolders
from convnext.data.splits import SPLIT_SEED, Splits, make_splits, root_of
from convnext.errors import DataError

if TYPE_CHECKING:
    from convnext.config import DataSettings
    from convnext.data.sources import FileSource


def _entry(classes: int, per_class: int, splits: Mapping[str, int], images: str, home: str, file: File) -> Dataset:
    return Dataset(
        title=f"Caltech-{classes}",
        summary=f"pictures of {classes} kinds of objects, with the background class left out",
        images=f"colour and grey, {images}",
        licence="CC BY 4.0",
        home=home,
        reported=f"test: there is no official split; {per_class} images a class train, as usual, drawn by a fixed "
        f"seed, and the rest is the test (a class of no more than that keeps one for it)",
        classes=classes,
        splits=splits,
        files=(file,),
    )


@register_dataset(
    "caltech101",
    _entry(
        *(101, 30, {"train": 3_030, "test": 5_647}, "about 300x200 px", "https://data.caltech.edu/records/mzrjq-6wc02"),
        File(
            *("caltech-101.zip", "caltech101/101_ObjectCategories", "3138e1922a9193bfa496528edbbc45d0", 137_414_764),
            mirrors=("https://data.caltech.edu/records/mzrjq-6wc02/files/",),
            holds="101_ObjectCategories",
            within="caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
)
def caltech101(entry: Dataset, settings: "DataSettings") -> Splits:
    """Caltech-101 without its background class: 30 images a class train, the others test."""
    root = find(entry, root_of(settings), lambda root: (root / "accordion").is_dir())
    folders = [name for name in subfolders(root, "") if name != "BACKGROUND_Google"]
    names = tuple(name.replace("_", " ") for name in folders)
    return make_splits(names, _draw(list_images(root, folders), 30), settings.test_fraction)


@register_dataset(
    "caltech256",
    _entry(
        *(256, 60, {"train": 15_360, "test": 14_420}, "of many sizes", "https://data.caltech.edu/records/nyy15-4j048"),
        File(
            *("256_ObjectCategories.tar", "caltech256/256_ObjectCategories", "67b4f42ca05d46448c6bb8ecd2220f6d", None),
            mirrors=("https://data.caltech.edu/records/nyy15-4j048/files/",),
            holds="256_ObjectCategories",
        ),
    ),
)
def caltech256(entry: Dataset, settings: "DataSettings") -> Splits:
    """Caltech-256 without its clutter class: 60 images a class train, the others test."""
    root = find(entry, root_of(settings), lambda root: (root / "001.ak47").is_dir())
    folders = [name for name in subfolders(root, "") if name != "257.clutter"]
    # 001.ak47, and 002.american-flag-101 where the class comes from Caltech-101
    names = {name: re.sub(r"^\d+\.", "", name).removesuffix("-101") for name in folders}
    return make_splits(human_names(folders, names), _draw(list_images(root, folders), 60), settings.test_fraction)


def _draw(source: "FileSource", per_class: int) -> "dict[str, FileSource]":
    """``per_class`` images of each class for the training, fewer where none would be left; the others for the test."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    chosen = np.zeros(len(source), bool)
    for target in np.unique(source.targets):
        indices = np.flatnonzero(source.targets == target)
        if len(indices) < 2:
            raise DataError(f"{source.path(indices[0]).parent} has one image only: training and test need one each")
        size = min(per_class, len(indices) - 1)
        chosen[train_test_split(indices, train_size=size, random_state=SPLIT_SEED)[0]] = True
    return {"train": source.subset(np.flatnonzero(chosen)), "test": source.subset(np.flatnonzero(~chosen))}
