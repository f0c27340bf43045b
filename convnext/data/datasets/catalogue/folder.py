"""Any folder of class folders."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.data.datasets.entries import Dataset, Settings, register_dataset
from convnext.data.splits import SPLIT_BY_SPELLING, Splits, make_splits, root_of
from convnext.errors import DataError

if TYPE_CHECKING:  # the catalogue's entries need no torch
    from convnext.data.sources import FileSource


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
    root = root_of(settings)
    folders, notes = split_folders(root)
    if "train" not in folders:
        raise DataError(f"{root} has {' and '.join(path.name for path in folders.values())}/ but no train/")
    classes, more = _classes(folders["train"])
    splits = make_splits(classes, scan_splits(folders, classes), settings.test_fraction, val_chooses=True)
    return replace(splits, notes=(*notes, *more, *splits.notes))


def split_folders(root: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The folders of class folders in ``root``, by split; ``root`` itself as ``train`` where it is one; and lines on
    what is not as it may seem.

    What tells a split from a class that is called like one is that a split has class folders, not images.

    Raises:
        DataError: ``root`` is no folder, or has two folders for one split.
    """
    from convnext.data.files import class_folders, has_images

    if not root.is_dir():
        raise DataError(f"data.root {root} is {'not a folder' if root.exists() else 'not there'}")
    names = class_folders(root)
    splits: dict[str, Path] = {}
    for name in names:
        split = SPLIT_BY_SPELLING.get(name.lower())
        if split is None or name.lower() == "dev":  # which is a class, unless it lies beside train/
            continue
        if split in splits:
            raise DataError(f"{root} has both {splits[split].name}/ and {name}/: keep one")
        splits[split] = root / name
    others = [name for name in names if root / name not in splits.values()]
    if not splits:
        return {"train": root}, ()
    deciding = [splits["train"]] if "train" in splits else list(splits.values())
    if all(map(_is_class, deciding)) and (siblings := [name for name in others if has_images(root / name)]):
        notes = (f"{root}: {path.name}/ is taken as a class, having images but no class folders, like {siblings[0]}/"
                 for path in splits.values())  # fmt: skip
        return {"train": root}, tuple(notes)
    return _with_dev(root, splits, others)


def _with_dev(root: Path, splits: dict[str, Path], others: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The splits, with ``dev/`` as the validation split that is missing; and lines on that and on the other folders."""
    from convnext.data.files import class_folders, has_images, normal_form

    notes = []
    for name in others if "train" in splits and "val" not in splits else ():
        classes = {normal_form(each) for each in class_folders(root / name)}
        if name.lower() == "dev" and classes and classes <= set(map(normal_form, class_folders(splits["train"]))):
            splits = {**splits, "val": root / name}
            notes.append(f"{root}: {name}/ is taken as the validation split")
            break
    if ignored := [name for name in others if root / name not in splits.values() and has_images(root / name)]:
        listed = ", ".join(f"{name}/" for name in ignored[:5]) + (", …" if len(ignored) > 5 else "")
        notes.append(
            f"{root}: images beside {' and '.join(f'{path.name}/' for path in splits.values())} are not used: {listed}"
        )
    return splits, tuple(notes)


def _is_class(folder: Path) -> bool:
    """Whether it has images, and no folders."""
    from convnext.data.files import class_folders, has_images

    return not class_folders(folder) and has_images(folder)


def _classes(train: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes of the training images, sorted, those that differ by their Unicode form alone as one; and lines on
    those."""
    from convnext.data.files import class_folders, normal_form

    names = class_folders(train)
    if not names:
        raise DataError(f"{train} has no class folders: expected {train}/<class>/*.jpg (or .png, …)")
    by_form: dict[str, list[str]] = {}
    for name in names:
        by_form.setdefault(normal_form(name), []).append(name)
    if len(by_form) == 1:
        raise DataError(f"{train} has one class only ({names[0]}): a classifier needs at least two class folders")
    notes = (f"{train} has {spellings[0]} in two Unicode spellings, which are taken as one class"
             for spellings in by_form.values() if len(spellings) > 1)  # fmt: skip
    return tuple(spellings[0] for spellings in by_form.values()), tuple(notes)


def scan_splits(folders: Mapping[str, Path], classes: Sequence[str]) -> "dict[str, FileSource]":
    """The images of each split, by class folder.

    Raises:
        DataError: a folder without images, or with a class that is not among ``classes``.
    """
    from convnext.data.files import scan_folder

    return {split: scan_folder(path, classes) for split, path in folders.items()}
