"""Data sets by name: loaded in five steps, fetched without loading, and written as folders."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from convnext.config import DataSettings
from convnext.data.datasets.catalogue import FAMILIES, find_entry
from convnext.data.datasets.entries import FETCHERS, LOADERS
from convnext.data.datasets.fetching import fetch
from convnext.data.datasets.listing import read_lines
from convnext.data.files import normal_form
from convnext.data.sources import FileSource, ImageSource, join, statistics
from convnext.data.splits import SPELLINGS, SPLIT_SEED, Splits, held_out_notes, hold_out
from convnext.errors import DataError
from convnext.output import few

OWN = "own"  # what data.name says of data sets that a program handed in


def load_splits(settings: DataSettings) -> Splits:
    """The data set of the settings, ready to train on: `read_splits`, and then all that the other steps do.

    Raises:
        DataError: unknown name, missing folder, or one that is not as the data set needs it.
    """
    splits = read_splits(settings)
    splits = take_fold(exclude_images(splits, settings), settings)
    splits = measure_statistics(splits, settings)  # of all training images, those held out next among them
    return hold_out_val(splits, settings)


def read_splits(settings: DataSettings, allow_empty: bool = False) -> Splits:
    """The first step: the data set as it is, fetched where it can be and is not there, with a test split.

    Args:
        settings: which data set, and where.
        allow_empty: whether a class folder of the training images may have none.

    Raises:
        DataError: unknown name, missing folder, or one that is not as the data set needs it.
    """
    return _read(settings, allow_empty).configured(settings)


def _read(settings: DataSettings, allow_empty: bool) -> Splits:
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
    if settings.name == "folder" and not allow_empty:
        counts = np.bincount(splits.train.targets, minlength=len(splits.classes))
        if empty := [splits.classes[index] for index in np.flatnonzero(counts == 0)]:
            raise DataError(f"{settings.root} has class folders without images: {few(empty, 5)}: fill or remove them")
    notes = splits.notes + notes_on_files(filter(None, map(splits.split, SPELLINGS)))
    return replace(splits, mean=entry.mean, std=entry.std, notes=notes)


def notes_on_files(sources: Iterable[ImageSource]) -> tuple[str, ...]:
    """Lines on what lies among the files of the sources and is left out."""
    listings = {id(source.left_out): source.left_out for source in sources if isinstance(source, FileSource)}
    return tuple(line for left_out in listings.values() for line in left_out.lines())


def exclude_images(splits: Splits, settings: DataSettings) -> Splits:
    """The second step: without the images that the file ``data.exclude`` names, a path a line, relative to the root.

    Raises:
        DataError: as of `without_excluded`; or a class has no training image left.
    """
    sources = {name: source for name in SPELLINGS if (source := splits.split(name)) is not None}
    rest, notes = without_excluded(sources, settings)
    before, after = (np.bincount(each["train"].targets, minlength=len(splits.classes)) for each in (sources, rest))
    if len(emptied := np.flatnonzero((before > 0) & (after == 0))):
        raise DataError(f"{settings.exclude} leaves no training image of class {splits.classes[emptied[0]]!r}")
    return replace(splits, train=rest["train"], val=rest.get("val"), test=rest["test"], notes=splits.notes + notes)


def without_excluded(
    sources: Mapping[str, ImageSource], settings: DataSettings
) -> tuple[dict[str, ImageSource], tuple[str, ...]]:
    """The sources, by split, without the images that the file ``data.exclude`` names, and lines on it for the user.

    Empty lines and those that start with ``#`` mean nothing. A path that names no image as it is may have backslashes
    in place of slashes, or another Unicode form.

    Raises:
        DataError: the file cannot be read, or the images are no files.
    """
    if settings.exclude is None:
        return dict(sources), ()
    root = settings.root
    files = {id(source): source for source in sources.values() if isinstance(source, FileSource)}
    if root is None or len(files) < len(set(map(id, sources.values()))):
        raise DataError(
            f"data.exclude names files, which the images of data set {settings.name!r} are not: leave it out"
        )
    try:
        lines = read_lines(settings.exclude, "surrogateescape")
    except DataError as error:
        raise DataError(f"data.exclude: {error}") from None
    named = {os.path.relpath(root / line, root) for line in lines if not line.startswith("#")}
    paths = {key: _paths_below(root, source) for key, source in files.items()}
    known = set(chain.from_iterable(paths.values()))
    by_form = {_form(path): path for path in known} if named - known else {}
    images = [path for line in named if (path := line if line in known else by_form.get(_form(line)))]
    unwanted, missing = set(images), len(named) - len(images)
    rest = {
        key: source.subset(np.array([i for i, path in enumerate(paths[key]) if path not in unwanted], np.int64))
        for key, source in files.items()
    }
    notes = (f"{settings.exclude}: {missing} of {len(named)} paths name no image",) if missing else ()
    return {name: rest[id(source)] for name, source in sources.items()}, notes


def _paths_below(root: Path, source: FileSource) -> list[str]:
    """The paths of a source's images, relative to ``root``."""
    prefix = os.path.relpath(source.root, root) + "/"
    return [(prefix + os.fsdecode(path)).removeprefix("./") for path in source.paths.tolist()]


def _form(path: str) -> str:
    """A path in the one spelling that those with backslashes, or in another Unicode form, share."""
    return os.path.normpath(normal_form(path.replace("\\", "/")))


def take_fold(splits: Splits, settings: DataSettings) -> Splits:
    """The third step: where the settings have ``data.folds``, the images of all splits, divided anew, stratified and
    always in the same way, into the fold to test on and the rest to train on.

    Raises:
        DataError: a class of fewer images than folds.
    """
    if settings.folds is None:
        return splits
    from sklearn.model_selection import StratifiedKFold

    whole = join(
        list({id(source): source for name in SPELLINGS if (source := splits.split(name)) is not None}.values())
    )
    counts = np.bincount(whole.targets, minlength=len(splits.classes))
    if len(short := np.flatnonzero((counts > 0) & (counts < settings.folds))):
        raise DataError(
            f"data.folds: {settings.folds} folds need as many images of each class, and "
            f"{few([f'{splits.classes[index]} has {counts[index]}' for index in short])}: lower it, or add images"
        )
    division = StratifiedKFold(settings.folds, shuffle=True, random_state=SPLIT_SEED)
    train, test = list(division.split(whole.targets, whole.targets))[settings.fold]
    return replace(splits, train=whole.subset(train), val=None, test=whole.subset(test), test_name="test")


def measure_statistics(splits: Splits, settings: DataSettings) -> Splits:
    """The fourth step: the mean and std of the settings, else the catalogue's, else those of the training images.

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
    """The fifth step: with a validation split of ``data.val_fraction`` of the training images, where there is none;
    still without one where no class has two images."""
    if splits.val is not None or not settings.val_fraction:
        return splits
    train, val = hold_out(splits.train, settings.val_fraction)
    notes = splits.notes + held_out_notes(splits.classes, splits.train, val, "val", settings.val_fraction)
    return replace(splits, train=train, val=val if len(val) else None, notes=notes)


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

    The validation images belong to train/, unless they are those of the test.

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
    val = None if splits.val is splits.test else splits.val
    try:
        for split, source in (("train", splits.train), ("train", val), ("test", splits.test)):
            if source is None:
                continue
            prefix = "val" if source is val else ""
            for name in names:
                (unfinished / split / name).mkdir(parents=True, exist_ok=True)
            for index, target in enumerate(source.targets):
                source.load(index).save(unfinished / split / names[target] / f"{prefix}{index:05d}.png")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
