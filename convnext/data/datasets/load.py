"""Data sets by name: loaded in four steps, fetched without loading, and written as folders."""

import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from convnext.config import DataSettings
from convnext.data.datasets.catalogue import FAMILIES, find_entry
from convnext.data.datasets.entries import FETCHERS, LOADERS
from convnext.data.datasets.fetching import fetch
from convnext.data.sources import FileSource, ImageSource, statistics
from convnext.data.splits import Splits, hold_out
from convnext.errors import DataError
from convnext.output import say

OWN = "own"  # what data.name says of data sets that a program handed in


def load_splits(settings: DataSettings) -> Splits:
    """The data set of the settings, ready to train on: `read_splits`, and then all that the other steps do.

    Raises:
        DataError: unknown name, missing folder, or one that is not as the data set needs it.
    """
    splits = read_splits(settings)
    splits = exclude_images(splits, settings)
    splits = measure_statistics(splits, settings)  # of all training images, those held out next among them
    return hold_out_val(splits, settings)


def read_splits(settings: DataSettings) -> Splits:
    """The first step: the data set as it is, fetched where it can be and is not there, with a test split.

    Raises:
        DataError: unknown name, missing folder, or one that is not as the data set needs it.
    """
    return _read(settings).configured(settings)


def _read(settings: DataSettings) -> Splits:
    if settings.name.startswith("hf:"):
        from convnext.data.datasets.hub import hub_splits

        return hub_splits(settings)
    if settings.name.startswith("wds:"):
        from convnext.data.datasets.webdataset import read_shards

        return read_shards(settings)
    if settings.name == OWN:
        raise DataError("the run had data sets of a program's own: give them again, to train or evaluate as data=…")
    entry = find_entry(settings.name)
    splits = LOADERS[settings.name](entry, settings)
    return replace(splits, mean=entry.mean, std=entry.std)


def exclude_images(splits: Splits, settings: DataSettings) -> Splits:
    """The second step: without the images that the file ``data.exclude`` names, a path a line, relative to the root.

    Empty lines and those that start with ``#`` mean nothing; paths that name no image are counted on standard error.

    Raises:
        DataError: the file cannot be read, the images are no files, or a class has no training image left.
    """
    if settings.exclude is None:
        return splits
    try:
        lines = settings.exclude.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read data.exclude {settings.exclude}: {error.strerror}") from None
    if settings.root is None or not isinstance(splits.train, FileSource):
        raise DataError(
            f"data.exclude names files, which the images of data set {settings.name!r} are not: leave it out"
        )
    root = settings.root
    named = [os.fsdecode(line) for line in lines if line.strip() and not line.startswith(b"#")]
    unwanted = {os.fsencode(os.path.relpath(root / line, root)) for line in named}
    excluded: set[bytes] = set()

    def without(source: ImageSource | None) -> ImageSource | None:
        if not isinstance(source, FileSource):
            return source
        prefix = os.fsencode(os.path.relpath(source.root, root)) + b"/"
        paths = [(prefix + path).removeprefix(b"./") for path in source.paths.tolist()]
        excluded.update(unwanted.intersection(paths))
        return source.subset(np.array([index for index, path in enumerate(paths) if path not in unwanted], np.int64))

    train, test = without(splits.train), without(splits.test)
    val = test if splits.val is splits.test else without(splits.val)
    assert train is not None
    assert test is not None
    if excluded != unwanted:
        missing = len(unwanted - excluded)
        say(f"{settings.exclude}: {missing} of {len(unwanted)} paths name no image")
    counts = np.bincount(train.targets, minlength=len(splits.classes))
    if not counts.all():
        name = splits.classes[int(counts.argmin())]
        raise DataError(f"{settings.exclude} leaves no training image of class {name!r}")
    return replace(splits, train=train, val=val, test=test)


def measure_statistics(splits: Splits, settings: DataSettings) -> Splits:
    """The third step: the mean and std of the settings, else the catalogue's, else those of the training images.

    Raises:
        DataError: a number of channels that is not the images', or no image that can be read.
    """
    splits = replace(splits, mean=settings.mean or splits.mean, std=settings.std or splits.std)
    for name in ("mean", "std"):
        values = getattr(splits, name)
        if values and len(values) != splits.channels:
            raise DataError(f"data.{name} has {len(values)} values, but the images have {splits.channels} channels")
    if splits.mean and splits.std:
        return splits
    mean, std = statistics(splits.train)
    return replace(splits, mean=splits.mean or mean, std=splits.std or std)


def hold_out_val(splits: Splits, settings: DataSettings) -> Splits:
    """The fourth step: with a validation split of ``data.val_fraction`` of the training images, where there is none.

    Raises:
        DataError: a class has too few images to hold out any.
    """
    if splits.val is not None or not settings.val_fraction:
        return splits
    train, val = hold_out(splits.train, settings.val_fraction)
    return replace(splits, train=train, val=val)


def obtain(name: str, root: Path) -> None:
    """Fetch a data set into ``root``, where it is not there yet, without loading it.

    Raises:
        UserError: it cannot be fetched; the message says how to come by it where an account is needed.
    """
    if name.startswith(tuple(FAMILIES)):
        raise DataError(f"{name} is fetched at its first use: give it as --data.name")
    entry = find_entry(name)
    if not entry.files:
        raise DataError(f"there is nothing to download for {name!r}: {entry.instructions or entry.summary}")
    FETCHERS.get(name, fetch)(entry, root)


def export_folder(splits: Splits, folder: Path) -> None:
    """Write a data set's training and test images as ``folder/{train,test}/<class>/<number>.png``.

    The validation images, where some are held out, belong to train/.

    Raises:
        DataError: ``folder`` exists already.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already: choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A name with a slash would be two folders, and one with a dot in front a hidden one.
    names = [re.sub(r"[/\\]", "-", name).lstrip(".") or "class" for name in splits.classes]
    if len(set(names)) < len(names):
        raise DataError(f"the classes of the data set cannot be told apart as names of folders: {', '.join(names[:5])}")
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split, source in (("train", splits.train), ("train", splits.val), ("test", splits.test)):
            if source is None:
                continue
            prefix = "val" if source is splits.val else ""
            for name in names:
                (unfinished / split / name).mkdir(parents=True, exist_ok=True)
            for index, target in enumerate(source.targets):
                source.load(index).save(unfinished / split / names[target] / f"{prefix}{index:05d}.png")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
