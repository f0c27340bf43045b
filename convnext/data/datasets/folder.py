"""Any folder of class folders."""

from pathlib import Path

import numpy as np

from convnext.config import DataSettings
from convnext.data.datasets.catalogue import Dataset
from convnext.data.sources import ImageSource, class_folders, scan_folder, stratified_split
from convnext.data.splits import SPLIT_SEED, Splits, root_of
from convnext.errors import DataError

_PART_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def folder(_: Dataset, settings: DataSettings) -> Splits:
    """``<root>/train/<class>/*`` with optional val/ and test/, or ``<root>/<class>/*``.

    Raises:
        DataError: no folder, or not one of at least two classes with images.
    """
    root = root_of(settings)
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
    counts = np.bincount(train.targets, minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(f"{folder} has class folders without images: {', '.join(empty[:5])}")
    val: ImageSource | None = scan_folder(parts["val"], classes) if "val" in parts else None
    test_name = "test"
    if "test" in parts:
        test: ImageSource = scan_folder(parts["test"], classes)
    elif val is not None:
        test, test_name = val, "val"
    else:
        train, test = stratified_split(train, settings.test_fraction, SPLIT_SEED)
    return Splits(tuple(classes), train, val, test, test_name=test_name)


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
