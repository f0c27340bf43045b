"""One entry a data set: where it comes from, its classes, splits and statistics."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convnext.config import DataSettings
from convnext.data.sources import ArraySource, ImageSource, class_folders, scan_folder, statistics, stratified_split
from convnext.errors import DataError, did_you_mean

# A split that a data set lacks is drawn by a seed of its own, so that every run is tested on the same images.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Splits:
    """A data set, divided.

    `test` gives the number that is reported; `val`, where there is one, chooses `best`. `test_name` is ``"test"``, or
    ``"val"`` for a folder that has train/ and val/ alone.
    """

    classes: tuple[str, ...]
    train: ImageSource
    val: ImageSource | None
    test: ImageSource
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_name: str = "test"

    def part(self, name: str) -> ImageSource | None:
        """The split called ``"train"``, ``"val"`` or ``"test"``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def fingerprints(self) -> dict[str, str]:
        """Digests of the splits there are, by name."""
        sources = {name: self.part(name) for name in ("train", "val", "test")}
        return {name: source.fingerprint() for name, source in sources.items() if source is not None}

    @property
    def channels(self) -> int:
        """Channels of the images: 3 or 1."""
        return self.train.channels


@dataclass(frozen=True)
class Dataset:
    """A catalogue entry.

    Args:
        summary: one line: what it is, how many images, and its licence or source.
        splits: makes the splits, before `DataSettings.val_fraction` is held out.
        needs_root: whether ``data.root`` must be given.
    """

    summary: str
    splits: Callable[[DataSettings], Splits]
    needs_root: bool = True


def load_splits(settings: DataSettings) -> Splits:
    """The data set of the settings, with a validation split held out where it has none.

    Raises:
        DataError: unknown name, missing folder, or one that is not as the data set needs it.
    """
    try:
        dataset = DATASETS[settings.name]
    except KeyError:
        raise DataError(f"no data set is called {settings.name!r}: {did_you_mean(settings.name, DATASETS)}") from None
    if dataset.needs_root and settings.root is None:
        raise DataError(f"data set {settings.name!r} needs its folder: give --data.root DIR")
    splits = dataset.splits(settings)
    if splits.val is None and settings.val_fraction:
        train, val = stratified_split(splits.train, settings.val_fraction, SPLIT_SEED)
        splits = replace(splits, train=train, val=val)
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if values is not None and len(values) != splits.channels:
            raise DataError(f"data.{name} has {len(values)} values, but the images have {splits.channels} channels")
    return replace(splits, mean=settings.mean or splits.mean, std=settings.std or splits.std)


def _digits(settings: DataSettings) -> Splits:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    source = ArraySource(images, data.target.astype(np.int64), channels=1)
    train, test = stratified_split(source, settings.test_fraction, SPLIT_SEED)
    mean, std = statistics(train, limit=len(train))
    return Splits(tuple("0123456789"), train, None, test, mean, std)


def _cifar10(settings: DataSettings) -> Splits:
    from torchvision.datasets import CIFAR10

    assert settings.root is not None
    was_there = settings.root.exists()
    try:
        train, test = (CIFAR10(settings.root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        if not was_there:
            shutil.rmtree(settings.root, ignore_errors=True)
        raise DataError(f"CIFAR-10 is not in {settings.root} and cannot be downloaded: {error}") from None
    sources = [ArraySource(part.data, np.array(part.targets, np.int64), channels=3) for part in (train, test)]
    # Statistics of the 50,000 training images, as published with torchvision's and most others' recipes.
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Splits(tuple(train.classes), sources[0], None, sources[1], mean, std)


_PART_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def _parts(root: Path) -> dict[str, Path]:
    """The sub-folders of ``root`` that are named like splits, in any usual spelling."""
    parts: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        name = _PART_NAMES.get(folder.name.lower(), folder.name.lower())
        if name in ("train", "val", "test"):
            if name in parts:
                raise DataError(f"{root} has both {parts[name].name}/ and {folder.name}/: keep one")
            parts[name] = folder
    return parts


def _folder(settings: DataSettings) -> Splits:
    root = settings.root
    assert root is not None
    if not root.is_dir():
        raise DataError(f"data.root {root} is {'not a folder' if root.exists() else 'not there'}")
    parts = _parts(root)
    folder = parts.get("train", root)
    if "train" not in parts and parts:
        raise DataError(f"{root} has {' and '.join(parts)}/ but no train/")
    classes = class_folders(folder)
    if not classes:
        raise DataError(f"{folder} has no class folders: expected {folder}/<class>/*.jpg (or .png, …)")
    if len(classes) == 1:
        raise DataError(f"{folder} has one class only ({classes[0]}): a classifier needs at least two class folders")
    train: ImageSource = scan_folder(folder, classes)
    empty = [
        name
        for name, count in zip(classes, np.bincount(train.targets, minlength=len(classes)), strict=True)
        if not count
    ]
    if empty:
        raise DataError(f"{folder} has class folders without images: {', '.join(empty[:5])}")
    val: ImageSource | None = scan_folder(parts["val"], classes) if "val" in parts else None
    test_name = "test"
    if "test" in parts:
        test: ImageSource = scan_folder(parts["test"], classes)
    elif val is not None:
        test, test_name = val, "val"
    else:
        train, test = stratified_split(train, settings.test_fraction, SPLIT_SEED)
    mean, std = (settings.mean, settings.std) if settings.mean and settings.std else statistics(train)
    return Splits(tuple(classes), train, val, test, mean, std, test_name)


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "handwritten digits: 1,797 grey images of 8x8 px in 10 classes, part of scikit-learn", _digits, False
    ),
    "cifar10": Dataset("CIFAR-10: 60,000 colour images of 32x32 px in 10 classes, downloaded", _cifar10),
    "folder": Dataset("your images: <root>/train/<class>/*, optional val/ and test/; or <root>/<class>/*", _folder),
}


def export_folder(splits: Splits, folder: Path) -> None:
    """Write a data set's training and test images as ``folder/{train,test}/<class>/<number>.png``.

    The validation images, where some are held out, belong to train/.

    Raises:
        DataError: ``folder`` exists already.
    """
    import tempfile

    if folder.exists():
        raise DataError(f"{folder} exists already: choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for part, source in (("train", splits.train), ("train", splits.val), ("test", splits.test)):
            if source is None:
                continue
            prefix = "val" if source is splits.val else ""
            for name in splits.classes:
                (unfinished / part / name).mkdir(parents=True, exist_ok=True)
            for index, target in enumerate(source.targets):
                source.load(index).save(unfinished / part / splits.classes[target] / f"{prefix}{index:05d}.png")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
