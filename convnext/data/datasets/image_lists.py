"""The data sets of image files: Imagenette, Imagewoof, Food-101, Caltech-101 and -256, Tiny and mini-ImageNet.

No image is opened here. Where torchvision has a class that knows the files' names and labels, they are its own; of the
Caltech sets it knows how many there are, which is wrong once one is removed, and it has no Imagewoof.
"""

import csv
import re
from pathlib import Path

import numpy as np

from convnext.config import DataSettings
from convnext.data.datasets.catalogue import Dataset
from convnext.data.datasets.fetching import find
from convnext.data.datasets.folder import folder
from convnext.data.datasets.listing import file_source, human_names, list_images, read_lines, subfolders, synset_names
from convnext.data.sources import FileSource, stratified_split
from convnext.data.splits import SPLIT_SEED, Splits, root_of
from convnext.errors import DataError


def imagenette(entry: Dataset, settings: DataSettings) -> Splits:
    """Imagenette or Imagewoof: ``train/<wnid>/`` and ``val/<wnid>/``, tested on val/."""

    def known(folder: Path) -> bool:
        return any((folder / "train" / wnid).is_dir() for wnid in entry.class_names)

    root = find(entry, root_of(settings), known)
    wnids = subfolders(root, "train")
    if unknown := [wnid for wnid in wnids if wnid not in entry.class_names]:
        raise DataError(f"{root / 'train'} is not that of {entry.title}: it has {', '.join(unknown[:5])}")
    train, val = (list_images(root, (f"{part}/{wnid}" for wnid in wnids)) for part in ("train", "val"))
    return Splits(human_names(wnids, entry.class_names), train, None, val, test_name="val")


def food101(entry: Dataset, settings: DataSettings) -> Splits:
    """Food-101, with its own split."""
    from torchvision.datasets import Food101

    root = find(entry, root_of(settings), lambda root: root.name == "food-101" and (root / "meta").is_dir())
    try:
        train, test = (Food101(root.parent, split=part) for part in ("train", "test"))
    except (AttributeError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{root} is not complete ({error}): remove it, and it is fetched again") from None
    sources = [
        file_source(root, [str(path.relative_to(root)) for path in part._image_files], part._labels)
        for part in (train, test)
    ]
    classes = tuple(name.replace("_", " ") for name in train.classes)
    return Splits(classes, sources[0], None, sources[1])


def caltech101(entry: Dataset, settings: DataSettings) -> Splits:
    """Caltech-101 without its background class: 30 images a class train, the others test."""
    root = find(entry, root_of(settings), lambda root: (root / "accordion").is_dir())
    folders = [name for name in subfolders(root, "") if name != "BACKGROUND_Google"]
    names = tuple(name.replace("_", " ") for name in folders)
    return Splits(names, *_drawn(list_images(root, folders), 30))


def caltech256(entry: Dataset, settings: DataSettings) -> Splits:
    """Caltech-256 without its clutter class: 60 images a class train, the others test."""
    root = find(entry, root_of(settings), lambda root: (root / "001.ak47").is_dir())
    folders = [name for name in subfolders(root, "") if name != "257.clutter"]
    # 001.ak47, and 002.american-flag-101 where the class comes from Caltech-101
    names = {name: re.sub(r"^\d+\.", "", name).removesuffix("-101") for name in folders}
    return Splits(human_names(folders, names), *_drawn(list_images(root, folders), 60))


def _drawn(source: FileSource, per_class: int) -> tuple[FileSource, None, FileSource]:
    """``per_class`` images of each class for the training, fewer where none would be left; no val; the others."""
    from sklearn.model_selection import train_test_split

    chosen = np.zeros(len(source), bool)
    for target in np.unique(source.targets):
        indices = np.flatnonzero(source.targets == target)
        if len(indices) < 2:
            raise DataError(f"{source.path(indices[0]).parent} has one image only: training and test need one each")
        size = min(per_class, len(indices) - 1)
        chosen[train_test_split(indices, train_size=size, random_state=SPLIT_SEED)[0]] = True
    return source.subset(np.flatnonzero(chosen)), None, source.subset(np.flatnonzero(~chosen))


def tiny_imagenet(entry: Dataset, settings: DataSettings) -> Splits:
    """Tiny ImageNet, or some of its classes: those that wnids.txt lists and train/ has. Tested on val/."""
    root = find(entry, root_of(settings), lambda root: (root / "wnids.txt").is_file())
    there = set(subfolders(root, "train"))
    wnids = sorted(there.intersection(read_lines(root / "wnids.txt")))
    if len(wnids) < 2:
        raise DataError(f"{root} has {len(wnids)} of the classes that its wnids.txt lists in train/: two are needed")
    train = list_images(root, (f"train/{wnid}/images" for wnid in wnids))
    index = {wnid: target for target, wnid in enumerate(wnids)}
    annotations = [line.split("\t") for line in read_lines(root / "val" / "val_annotations.txt")]
    labelled = [(f"val/images/{line[0]}", index[line[1]]) for line in annotations if len(line) > 1 and line[1] in index]
    if not labelled:
        raise DataError(f"{root / 'val' / 'val_annotations.txt'} names no image of the classes in train/")
    val = file_source(root, *zip(*labelled, strict=True))
    return Splits(human_names(wnids, synset_names(root)), train, None, val, test_name="val")


def mini_imagenet(entry: Dataset, settings: DataSettings) -> Splits:
    """mini-ImageNet for classification: all classes of its lists together, of which a stratified share is the test.

    The lists of few-shot learning (train.csv, val.csv and test.csv) have different classes each, so they are no split
    of a classification task. Without them, the folder is read like any other.
    """
    root = root_of(settings)
    lists = [path for path in (root / f"{part}.csv" for part in ("train", "val", "test")) if path.is_file()]
    if not lists:
        if not root.is_dir():
            raise DataError(f"{entry.title} is not in {root}: {entry.instructions}")
        return folder(entry, settings)
    rows = [row for path in lists for row in _rows(path)]
    wnids = sorted({label for _, label in rows})
    if len(wnids) < 2:
        raise DataError(f"the lists in {root} have one class only: a classifier needs at least two")
    index = {wnid: target for target, wnid in enumerate(wnids)}
    source = file_source(root, [f"images/{name}" for name, _ in rows], [index[label] for _, label in rows])
    train, test = stratified_split(source, settings.test_fraction, SPLIT_SEED)
    return Splits(human_names(wnids, synset_names(root)), train, None, test)


def _rows(path: Path) -> list[tuple[str, str]]:
    rows = [(row.get("filename"), row.get("label")) for row in csv.DictReader(read_lines(path))]
    complete = [(name, label) for name, label in rows if name and label]
    if not rows or len(complete) < len(rows):
        raise DataError(f"{path} lacks values: expected the columns filename and label")
    return complete
