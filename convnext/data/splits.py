"""A data set, divided; and the images that a user wants left out of it."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convnext.config import DataSettings
from convnext.data.sources import FileSource, ImageSource
from convnext.errors import DataError

# A split that a data set lacks is drawn by a seed of its own, so that every run is tested on the same images.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Splits:
    """A data set, divided.

    `test` gives the number that is reported; `val`, where there is one, chooses `best`. `test_name` is ``"test"``, or
    ``"val"`` where the data set has no other split to test on. Empty `mean` and `std` are those of the catalogue's
    entry, or measured, once `load_splits` gives the splits out.
    """

    classes: tuple[str, ...]
    train: ImageSource
    val: ImageSource | None
    test: ImageSource
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    test_name: str = "test"

    def split(self, name: str) -> ImageSource | None:
        """The split called ``"train"``, ``"val"`` or ``"test"``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def fingerprints(self) -> dict[str, str]:
        """Digests of the splits there are, by name."""
        sources = {name: self.split(name) for name in ("train", "val", "test")}
        return {name: source.fingerprint() for name, source in sources.items() if source is not None}

    @property
    def channels(self) -> int:
        """Channels of the images: 3 or 1."""
        return self.train.channels


def root_of(settings: DataSettings) -> Path:
    """The data set's folder.

    Raises:
        DataError: none was given.
    """
    if settings.root is None:
        raise DataError(f"data set {settings.name!r} needs its folder: give --data.root DIR")
    return settings.root


def without(splits: Splits, settings: DataSettings, exclude: Path) -> Splits:
    """The splits without the images that the file ``exclude`` names, a path a line, relative to ``data.root``.

    Empty lines and those that start with ``#`` mean nothing; paths that name no image are counted on standard error.

    Raises:
        DataError: the file cannot be read, the images are no files, or a class has no training image left.
    """
    try:
        lines = exclude.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read data.exclude {exclude}: {error.strerror}") from None
    if settings.root is None or not isinstance(splits.train, FileSource):
        raise DataError(
            f"data.exclude names files, which the images of data set {settings.name!r} are not: leave it out"
        )
    root = settings.root
    named = [os.fsdecode(line) for line in lines if line.strip() and not line.startswith(b"#")]
    unwanted = {os.fsencode(os.path.relpath(root / line, root)) for line in named}
    found: set[bytes] = set()

    def kept(source: ImageSource | None) -> ImageSource | None:
        if not isinstance(source, FileSource):
            return source
        prefix = os.fsencode(os.path.relpath(source.root, root)) + b"/"
        paths = [(prefix + path).removeprefix(b"./") for path in source.paths.tolist()]
        found.update(unwanted.intersection(paths))
        return source.subset(np.array([index for index, path in enumerate(paths) if path not in unwanted], np.int64))

    train, test = kept(splits.train), kept(splits.test)
    val = test if splits.val is splits.test else kept(splits.val)
    assert train is not None
    assert test is not None
    if found != unwanted:
        print(f"{exclude}: {len(unwanted - found)} of {len(unwanted)} paths name no image", file=sys.stderr)
    counts = np.bincount(train.targets, minlength=len(splits.classes))
    if not counts.all():
        raise DataError(f"{exclude} leaves no training image of class {splits.classes[int(counts.argmin())]!r}")
    return replace(splits, train=train, val=val, test=test)
