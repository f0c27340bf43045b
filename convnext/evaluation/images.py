"""Which images an evaluation is of: those of a run's split, all of them, or those of another folder."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from convnext.config import DataSettings
from convnext.data.datasets.catalogue.folder import scan_splits, split_folders
from convnext.data.datasets.load import (
    exclude_images,
    hold_out_val,
    load_splits,
    notes_on_files,
    take_fold,
    without_excluded,
)
from convnext.data.datasets.own import own_splits
from convnext.data.files import class_folders, has_images, normal_form
from convnext.data.sources import ImageSource, join
from convnext.data.splits import SPELLINGS, Splits, make_splits
from convnext.errors import CheckpointError, DataError, did_you_mean
from convnext.output import few, say
from convnext.weights.model_info import ModelInfo


class Evaluated(NamedTuple):
    """Images to evaluate, and how the names of the report's files begin and end."""

    source: ImageSource
    stem: str
    suffix: str


def choose_images(
    run: Path,
    origin: Path,
    recorded: Mapping[str, str],
    info: ModelInfo,
    trained: DataSettings,
    split: str | None = None,
    root: Path | None = None,
    data: Mapping[str, Dataset[Any]] | None = None,
) -> Evaluated:
    """The images that `convnext.evaluation.evaluator.evaluate` is asked for; a line on standard error says which.

    Args:
        run: the run's folder, or an exported file.
        origin: its checkpoint's folder, or the same file.
        recorded: digests of the images that it was trained and tested on, by split.
        info: the checkpoint's classes.
        trained: the run's data.
        split: ``"train"``, ``"val"``, ``"test"``, ``"all"``; None for the test split, or for all of a ``root`` of class
            folders without splits, unless they are the run's own images.
        root: a folder in place of the one trained on.
        data: the data sets by split, if the run was given one's own.

    Raises:
        CheckpointError: other classes than the checkpoint's.
        DataError: there is no such split, or its images are not those that the run had.
    """
    if split is not None and split not in ("all", *SPELLINGS):
        raise DataError(f"no split is called {split!r}: {did_you_mean(split, (*SPELLINGS, 'all'))}")
    settings: DataSettings = trained if root is None else trained.replace(root=root)
    if root is not None and data is None and (labelled := _labelled_folders(settings, info, origin)):
        splits, split = labelled_splits(settings, labelled[0], info, split, recorded)
        splits = replace(splits, notes=labelled[1] + splits.notes)
    else:
        split = split or "test"
        splits = load_splits(settings) if data is None else own_splits(data, info.classes, settings)
        check_classes(info, splits.classes, origin)
    return _of_split(run, splits, split, root, recorded)


def _of_split(run: Path, splits: Splits, split: str, root: Path | None, recorded: Mapping[str, str]) -> Evaluated:
    """The images of a split, or of all, that are those of the run, or are asked for by ``root``."""
    by_name = {name: source for name in SPELLINGS if (source := splits.split(name)) is not None}
    names = list(by_name) if split == "all" else [split]
    if split not in (*by_name, "all"):
        raise DataError(
            f"there is no {split!r} split: choose {', '.join(by_name)} or all (val needs data.val_fraction)"
        )
    now = splits.fingerprints()
    same = all(now[name] == recorded.get(name) for name in names)
    called = splits.test_name if split == "test" else split
    if split == "val" and splits.test_name == "val" and splits.val is not splits.test:
        called = "held-out"  # of the training images, where the report of "val" is that of the test
    if not same and root is None:
        raise DataError(
            f"the {called} images of {run} have changed since its training, so training images may be among them: "
            f"restore them, or give --data.root to evaluate on the images that are there"
        )
    distinct = list({id(by_name[name]): by_name[name] for name in names}.values())
    source = distinct[0] if len(distinct) == 1 else join(distinct)
    line = f"evaluating {'all' if split == 'all' else f'the {called} split:'} {len(source):,} images"
    if root is not None:
        line += f" of {root}"
    if not same:
        of_run = f"the images of {run}" if split == "all" else f"the {called} images of {run}"
        line += f", which are not {of_run} (it may have been trained on some); the report gets a name of its own"
    for note in (*(splits.notes if root is not None else ()), line):
        say(note)
    return Evaluated(source, called, f"-on-{root.resolve().name}" if not same and root is not None else "")


def _labelled_folders(
    settings: DataSettings, info: ModelInfo, folder: Path
) -> tuple[dict[str, Path], tuple[str, ...]] | None:
    """The folders by split of a root whose class folders are called like the checkpoint's classes, or some of them, and
    lines on them; None where the root is of a data set with another layout.

    Raises:
        CheckpointError: a folder of images for a class that the checkpoint does not know.
        DataError: no folder to look into.
    """
    assert settings.root is not None
    if settings.name != "folder" and not settings.root.is_dir():
        return None
    folders, notes = split_folders(settings.root)
    names = sorted({name for path in folders.values() for name in class_folders(path) if has_images(path / name)})
    if settings.name != "folder" and not (names and set(names) <= set(info.classes)):
        return None
    check_classes(info, names, folder, some=True)
    return folders, notes


def labelled_splits(
    settings: DataSettings, folders: Mapping[str, Path], info: ModelInfo, split: str | None, recorded: Mapping[str, str]
) -> tuple[Splits, str]:
    """The images of the folders, as training would divide them, and which split is meant; all of them as one split
    where the folders have none, none is asked for, and they are not the run's own images."""
    scanned = scan_splits(folders, info.classes)
    sources: dict[str, ImageSource] = {
        name: replace(each, channels=info.channels).configured(settings) for name, each in scanned.items()
    }
    if split in SPELLINGS and split not in sources and "train" not in sources:
        raise DataError(
            f"{settings.root} has no {split}/, only {' and '.join(f'{path.name}/' for path in folders.values())}"
        )
    undivided = folders.get("train") == settings.root and split in (None, "all")
    if undivided:
        rest, notes = without_excluded(sources, settings)
        whole = Splits(info.classes, rest["train"], None, rest["train"], notes=notes_on_files(sources.values()) + notes)
        if np.bincount(whole.train.targets).max() < 2:  # so that it could not be divided, as the run's images were
            return whole, "all"
    first = next(iter(sources.values()))
    splits = make_splits(info.classes, {"train": first, **sources}, settings.test_fraction, val_chooses=True)
    splits = exclude_images(replace(splits, notes=notes_on_files(sources.values()) + splits.notes), settings)
    if "train" in sources:
        with suppress(DataError):  # other images, too few for the folds
            folded = take_fold(splits, settings)
            splits = folded if folded.test.fingerprint() == recorded.get("test") else splits
    if undivided and splits.test.fingerprint() != recorded.get("test"):
        return whole, "all"
    return hold_out_val(splits, settings) if "train" in sources else splits, split or "test"


def check_classes(info: ModelInfo, classes: Sequence[str], folder: Path, *, some: bool = False) -> None:
    """Refuse data with other classes than the checkpoint's, or with ``some`` those that it does not have, with a
    CheckpointError that has the first few differences."""
    missing, added = (
        [name for name in ours if normal_form(name) not in set(map(normal_form, theirs))]
        for ours, theirs in ((info.classes, classes), (classes, info.classes))
    )
    if info.classes == tuple(classes) or (some and not added):
        return
    raise CheckpointError(
        f"checkpoint {folder} knows {len(info.classes)} classes and the data has {len(classes)}: "
        f"only in the checkpoint: {few(missing) if missing else 'none'}; "
        f"only in the data: {few(added) if added else 'none'}"
    )
