"""Data sets by name: loaded, divided, and written as folders. What is known of each stands in `entries`."""

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from convnext.config import DataSettings
from convnext.data.datasets import arrays as array_sets
from convnext.data.datasets import folder as folder_set
from convnext.data.datasets import image_lists as file_sets
from convnext.data.datasets import imagenet
from convnext.data.datasets.catalogue import DATASETS, FAMILIES, Dataset, find_entry
from convnext.data.datasets.fetching import fetch
from convnext.data.sources import statistics, stratified_split
from convnext.data.splits import SPLIT_SEED, Splits, without
from convnext.errors import DataError

__all__ = ["DATASETS", "SPLIT_SEED", "Splits", "export_folder", "load_splits", "obtain"]

_LOADERS: dict[str, Callable[[Dataset, DataSettings], Splits]] = {
    "digits": array_sets.digits,
    "mnist": array_sets.mnist,
    "fashion-mnist": array_sets.fashion_mnist,
    "cifar10": array_sets.cifar10,
    "cifar100": array_sets.cifar100,
    "tiny-imagenet": file_sets.tiny_imagenet,
    "imagenette": file_sets.imagenette,
    "imagenette320": file_sets.imagenette,
    "imagenette160": file_sets.imagenette,
    "imagewoof": file_sets.imagenette,
    "imagewoof320": file_sets.imagenette,
    "imagewoof160": file_sets.imagenette,
    "food101": file_sets.food101,
    "caltech101": file_sets.caltech101,
    "caltech256": file_sets.caltech256,
    "mini-imagenet": file_sets.mini_imagenet,
    "imagenet": imagenet.imagenet,
    "folder": folder_set.folder,
}


def load_splits(settings: DataSettings) -> Splits:
    """The data set of the settings, fetched where it can be and is not there, with a validation split held out where it
    has none.

    Raises:
        DataError: unknown name, missing folder, or one that is not as the data set needs it.
    """
    splits = _load(settings)
    if settings.exclude is not None:
        splits = without(splits, settings, settings.exclude)
    splits = replace(splits, mean=settings.mean or splits.mean, std=settings.std or splits.std)
    for name in ("mean", "std"):
        values = getattr(splits, name)
        if values and len(values) != splits.channels:
            raise DataError(f"data.{name} has {len(values)} values, but the images have {splits.channels} channels")
    if not splits.mean or not splits.std:
        mean, std = statistics(splits.train, limit=len(splits.train) if splits.train.in_memory else 1000)
        splits = replace(splits, mean=splits.mean or mean, std=splits.std or std)
    if splits.val is None and settings.val_fraction:
        train, val = stratified_split(splits.train, settings.val_fraction, SPLIT_SEED)
        splits = replace(splits, train=train, val=val)
    return splits


def _load(settings: DataSettings) -> Splits:
    if settings.name.startswith("hf:"):
        from convnext.data.datasets.hub import hub_splits

        return hub_splits(settings)
    if settings.name.startswith("wds:"):
        from convnext.data.datasets.webdataset import shard_splits

        return shard_splits(settings)
    entry = find_entry(settings.name)
    splits = _LOADERS[settings.name](entry, settings)
    return replace(splits, mean=entry.mean, std=entry.std)


def obtain(name: str, root: Path) -> None:
    """Fetch a data set into ``root``, where it is not there yet, without loading it.

    Raises:
        UserError: it cannot be fetched; the message says how to come by it where an account is needed.
    """
    if name.startswith(tuple(FAMILIES)):
        raise DataError(f"{name} is fetched at its first use: give it as --data.name")
    entry = find_entry(name)
    if name == "imagenet":
        imagenet.prepare(entry, root)
    elif entry.files:
        fetch(entry, root)
    else:
        raise DataError(f"there is nothing to download for {name!r}: {entry.instructions or entry.summary}")


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
        for part, source in (("train", splits.train), ("train", splits.val), ("test", splits.test)):
            if source is None:
                continue
            prefix = "val" if source is splits.val else ""
            for name in names:
                (unfinished / part / name).mkdir(parents=True, exist_ok=True)
            for index, target in enumerate(source.targets):
                source.load(index).save(unfinished / part / names[target] / f"{prefix}{index:05d}.png")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
