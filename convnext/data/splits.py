"""A data set, divided: its splits, how they are called, and how one that is missing is held out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.errors import DataError

if TYPE_CHECKING:  # the catalogue's entries need no torch
    import numpy as np
    from numpy.typing import NDArray

    from convnext.config import DataSettings
    from convnext.data.sources import ImageSource

# A split that a data set lacks is drawn by a seed of its own, so that every run is tested on the same images.
SPLIT_SEED = 0
# How others spell the splits; where there are several, the first one counts.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
SPLIT_BY_SPELLING: Mapping[str, str] = {spelling: name for name, all_of in SPELLINGS.items() for spelling in all_of}
# From so many shards on, whole shards are held out: an evaluation then reads those alone, and not all.
_MANY_SHARDS = 50
_CLASSES_NAMED = 5


@dataclass(frozen=True)
class Splits:
    """A data set, divided.

    `test` gives the number that is reported; `val`, where there is one, chooses `best`. `test_name` is ``"test"``, or
    ``"val"`` where the data set has no other split to test on. Empty `mean` and `std` are to be measured. `notes` are
    lines for the user: what was left out, and what was done about too few images.
    """

    classes: tuple[str, ...]
    train: "ImageSource"
    val: "ImageSource | None"
    test: "ImageSource"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    test_name: str = "test"
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> "ImageSource | None":
        """The split called ``"train"``, ``"val"`` or ``"test"``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @property
    def training_counts(self) -> list[int]:
        """Training images of each class."""
        import numpy as np

        counts: list[int] = np.bincount(self.train.targets, minlength=len(self.classes)).tolist()
        return counts

    def fingerprints(self) -> dict[str, str]:
        """Digests of the splits there are, by name."""
        sources = {name: self.split(name) for name in SPELLINGS}
        return {name: source.fingerprint() for name, source in sources.items() if source is not None}

    def configured(self, settings: "DataSettings") -> "Splits":
        """The same splits, their images read as the settings say."""
        sources = {name: source for name in SPELLINGS if (source := self.split(name)) is not None}
        changed = {id(source): source.configured(settings) for source in sources.values()}  # val and test may be one
        changes: dict[str, Any] = {name: changed[id(source)] for name, source in sources.items()}
        return replace(self, **changes)

    @property
    def channels(self) -> int:
        """Channels of the images: 3 or 1."""
        return self.train.channels


def make_splits(
    classes: tuple[str, ...],
    sources: "Mapping[str, ImageSource]",
    test_fraction: float,
    *,
    val_chooses: bool = False,
) -> Splits:
    """The splits of a data set, with the test that it lacks: without ``"test"``, ``"val"`` is the test; without both,
    ``test_fraction`` of ``"train"`` is held out.

    With ``val_chooses`` a ``"val"`` that is the test chooses `best`, too; else another may be held out for that.

    Raises:
        DataError: no class has two images, so that none can be held out.
    """
    train, val, test = sources["train"], sources.get("val"), sources.get("test")
    if test is None and val is not None:
        return Splits(classes, train, val if val_chooses else None, val, test_name="val")
    if test is not None:
        return Splits(classes, train, val, test)
    whole = train
    train, test = hold_out(whole, test_fraction)
    if not len(test):
        raise DataError(
            f"no class has two images (there are {len(whole)} of {len(classes)} classes), so none can be held out for "
            f"the test: add images, or test/ with images of its own"
        )
    return Splits(classes, train, val, test, notes=held_out_notes(classes, whole, test, "test", test_fraction))


def hold_out(source: "ImageSource", fraction: float) -> "tuple[ImageSource, ImageSource]":
    """The images that stay and those held out, each in the source's order: a fraction, between 0 and 1, of every class,
    or of the shards where there are many; always the same one.

    Many shards whose images are not mixed, so that a class would be left without training images, are taken as few.
    Where the fraction of all images is less than one of each class, every class that has two or more gives at least
    one; where none has, nothing is held out.
    """
    import numpy as np
    from sklearn.model_selection import train_test_split

    if source.groups is not None and len(shards := np.unique(source.groups)) >= _MANY_SHARDS:
        _, chosen = train_test_split(shards, test_size=fraction, random_state=SPLIT_SEED)
        held_out = np.isin(source.groups, chosen)
        if np.isin(source.targets[held_out], source.targets[~held_out]).all():
            return source.subset(np.flatnonzero(~held_out)), source.subset(np.flatnonzero(held_out))
    try:
        staying, chosen = train_test_split(
            np.arange(len(source)), test_size=fraction, random_state=SPLIT_SEED, stratify=source.targets
        )
    except ValueError:  # it wants one of each class at least, both in what stays and in what is held out
        chosen = _one_of_each_class(source, fraction)
        staying = np.setdiff1d(np.arange(len(source)), chosen)
    return source.subset(np.sort(staying)), source.subset(np.sort(chosen))


def _one_of_each_class(source: "ImageSource", fraction: float) -> "NDArray[np.int64]":
    """Indices of the fraction of each class, at least one and never all of its images."""
    import numpy as np

    generator = np.random.default_rng(SPLIT_SEED)
    chosen = [np.empty(0, np.int64)]
    for target in np.unique(source.targets):
        indices = generator.permutation(np.flatnonzero(source.targets == target))
        chosen.append(indices[: min(max(1, round(fraction * len(indices))), len(indices) - 1)])
    return np.concatenate(chosen)


def held_out_notes(
    classes: tuple[str, ...], whole: "ImageSource", held_out: "ImageSource", split: str, fraction: float
) -> tuple[str, ...]:
    """Lines on what few images made of a split that was held out of ``whole``: more than its fraction, and classes that
    it lacks."""
    import numpy as np

    before, after = (np.bincount(source.targets, minlength=len(classes)) for source in (whole, held_out))
    notes = []
    if len(held_out) > math.ceil(fraction * len(whole)):
        notes.append(
            f"{len(held_out):,} of {len(whole):,} images are held out for {split}, more than data.{split}_fraction "
            f"{fraction:g} of them, so that every class with two or more images has one"
        )
    if len(lacking := np.flatnonzero((after == 0) & (before > 0))):
        names = ", ".join(f"{classes[index]} ({before[index]:,})" for index in lacking[:_CLASSES_NAMED])
        more = f" and {len(lacking) - _CLASSES_NAMED:,} more" if len(lacking) > _CLASSES_NAMED else ""
        notes.append(
            f"{len(lacking):,} of {len(classes):,} classes have too few images for {split}, and keep all for the "
            f"training: {names}{more}"
        )
    return tuple(notes)


def root_of(settings: "DataSettings") -> Path:
    """The data set's folder.

    Raises:
        DataError: none was given.
    """
    if settings.root is None:
        raise DataError(f"data set {settings.name!r} needs its folder: give --data.root DIR")
    return settings.root
