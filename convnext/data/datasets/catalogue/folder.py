"""Any folder of class folders."""

from pathlib import Path

from convnext.data.datasets.entries import Dataset, Settings, register_dataset
from convnext.data.splits import SPLIT_BY_SPELLING, Splits, make_splits, root_of
from convnext.errors import DataError


@register_dataset(
    "folder",
    Dataset(
        title="any image folder",
        summary="your images: <root>/train/<class>/*, optional val/ and test/; or <root>/<class>/*",
        images="any that Pillow opens",
        licence="yours",
        home="README.md",
        reported="test: test/, else val/, else a stratified fifth (data.test_fraction) held out by a fixed seed",
    ),
)
def folder(_: Dataset, settings: Settings) -> Splits:
    """``<root>/train/<class>/*`` with optional val/ and test/, or ``<root>/<class>/*``.

    Raises:
        DataError: no folder, or not one of at least two classes with images.
    """
    import numpy as np

    from convnext.data.sources import class_folders, scan_folder

    root = root_of(settings)
    if not root.is_dir():
        raise DataError(f"data.root {root} is {'not a folder' if root.exists() else 'not there'}")
    folders = _split_folders(root)
    if folders and "train" not in folders:
        raise DataError(f"{root} has {' and '.join(folders)}/ but no train/")
    train = folders.setdefault("train", root)
    classes = class_folders(train)
    if not classes:
        raise DataError(f"{train} has no class folders: expected {train}/<class>/*.jpg (or .png, …)")
    if len(classes) == 1:
        raise DataError(f"{train} has one class only ({classes[0]}): a classifier needs at least two class folders")
    sources = {"train": scan_folder(train, classes)}
    counts = np.bincount(sources["train"].targets, minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(f"{train} has class folders without images: {', '.join(empty[:5])}")
    sources |= {name: scan_folder(path, classes) for name, path in folders.items() if name != "train"}
    return make_splits(tuple(classes), sources, settings.test_fraction, val_chooses=True)


def _split_folders(root: Path) -> dict[str, Path]:
    """The sub-folders of ``root`` that are named like splits, in any usual spelling but dev, which may be a class."""
    folders: dict[str, Path] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        name = SPLIT_BY_SPELLING.get(path.name.lower())
        if name is None or path.name.lower() == "dev":
            continue
        if name in folders:
            raise DataError(f"{root} has both {folders[name].name}/ and {path.name}/: keep one")
        folders[name] = path
    return folders
