"""Caltech-101 and Caltech-256.

torchvision's classes know how many images there are, which is wrong once one is removed: the folders are listed here.
"""

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from convnext.data.datasets.entries import Dataset, File, Settings, register_dataset
from convnext.data.datasets.fetching import find
from convnext.data.datasets.listing import human_names, list_images, subfolders
from convnext.data.splits import SPLIT_SEED, Splits, make_splits, root_of
from convnext.errors import DataError

if TYPE_CHECKING:
    from convnext.data.sources import FileSource

_REPORTED = (
    "test: there is no official split; {} images a class train, as usual, drawn by a fixed seed, and the rest is the "
    "test (a class of no more than that keeps one for it)"
)
# A folder that is there, the one that is left out, and images of a class to train on.
_LAYOUTS = {"Caltech-101": ("accordion", "BACKGROUND_Google", 30), "Caltech-256": ("001.ak47", "257.clutter", 60)}

CALTECH101 = Dataset(
    title="Caltech-101",
    summary="pictures of 101 kinds of objects, with the background class left out",
    images="colour and grey, about 300x200 px",
    licence="CC BY 4.0",
    home="https://data.caltech.edu/records/mzrjq-6wc02",
    reported=_REPORTED.format(30),
    classes=101,
    splits={"train": 3_030, "test": 5_647},
    files=(
        File(
            *("caltech-101.zip", "caltech101/101_ObjectCategories", "3138e1922a9193bfa496528edbbc45d0", 137_414_764),
            mirrors=("https://data.caltech.edu/records/mzrjq-6wc02/files/",),
            within="caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
)
CALTECH256 = replace(
    CALTECH101,
    title="Caltech-256",
    summary="pictures of 256 kinds of objects, with the background class left out",
    images="colour and grey, of many sizes",
    home="https://data.caltech.edu/records/nyy15-4j048",
    reported=_REPORTED.format(60),
    classes=256,
    splits={"train": 15_360, "test": 14_420},
    files=(
        File(
            *("256_ObjectCategories.tar", "caltech256/256_ObjectCategories", "67b4f42ca05d46448c6bb8ecd2220f6d", None),
            mirrors=("https://data.caltech.edu/records/nyy15-4j048/files/",),
        ),
    ),
)


@register_dataset("caltech101", CALTECH101)
@register_dataset("caltech256", CALTECH256)
def caltech(entry: Dataset, settings: Settings) -> Splits:
    """Caltech-101, of which 30 images a class train, or Caltech-256, of which 60 do; without its background class."""
    first, background, per_class = _LAYOUTS[entry.title]
    root = find(entry, root_of(settings), lambda root: (root / first).is_dir())
    folders = [name for name in subfolders(root, "") if name != background]
    # In Caltech-256 001.ak47, and 002.american-flag-101 where the class comes from Caltech-101.
    names = {name: re.sub(r"^\d+\.", "", name).removesuffix("-101").replace("_", " ") for name in folders}
    sources = _draw(list_images(root, folders), per_class)
    return make_splits(human_names(folders, names), sources, settings.test_fraction)


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
