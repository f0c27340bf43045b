"""ImageNet-1K: the official archives, unpacked into class folders, or the folders themselves."""

import sys
import tempfile
from pathlib import Path

from convnext.config import DataSettings
from convnext.data.datasets.catalogue import Dataset
from convnext.data.datasets.fetching import archive_path, preparing
from convnext.data.datasets.listing import human_names, list_images, subfolders, synset_names
from convnext.data.splits import Splits, root_of
from convnext.errors import DataError
from convnext.storage import archives

_CLASSES = 1000


def imagenet(entry: Dataset, settings: DataSettings) -> Splits:
    """ImageNet-1K, tested on its validation images; classes that train/ lacks are left out of val/."""
    root = root_of(settings)
    prepare(entry, root)
    wnids = subfolders(root, "train")
    subfolders(root, "val")  # a flat val/ is the most common mistake
    if len(wnids) < 2:
        raise DataError(f"{root / 'train'} has one class only: a classifier needs at least two class folders")
    train, val = (list_images(root, (f"{part}/{wnid}" for wnid in wnids)) for part in ("train", "val"))
    return Splits(human_names(wnids, _names(entry, root, wnids)), train, None, val, test_name="val")


def prepare(entry: Dataset, root: Path) -> None:
    """Unpack the official archives in ``root``, where train/ or val/ is not there yet.

    Raises:
        DataError: an archive is missing (the message says how to come by it), damaged, or there is no room.
    """
    train, val, devkit = entry.files
    parts = [file for file in (train, val) if not (root / file.becomes).is_dir()]
    needed = [*parts, devkit] if val in parts else parts
    if missing := [file.name for file in needed if not archive_path(file, root).is_file()]:
        raise DataError(f"{entry.title} is not in {root} ({', '.join(missing)} missing): {entry.instructions}")
    for file in parts:
        with preparing(entry, root):
            archive = archive_path(file, root)
            if (root / file.becomes).is_dir():
                continue  # another process did it while we waited
            print(f"unpacking {archive}", file=sys.stderr)
            archives.verify(archive, file.md5)
            if file is train:
                archives.unpack_classes(archive, root / file.becomes)
            else:
                archives.unpack(archive, root / file.becomes, _validation_places(archive_path(devkit, root)).get)


def _validation_places(devkit: Path) -> dict[str, str]:
    """Where the images of the flat validation archive go: their classes, in the order of their names, are the devkit's.

    Raises:
        DataError: the devkit is damaged.
    """
    classes = _devkit(devkit)[1]
    names = (f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(classes) + 1))
    return {name: f"{wnid}/{name}" for name, wnid in zip(names, classes, strict=True)}


def _devkit(archive: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Names by WordNet number, and the WordNet number of every validation image, of the official devkit.

    Raises:
        DataError: it is damaged.
    """
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    with tempfile.TemporaryDirectory() as temporary:  # torchvision writes beside the archive, which may be read-only
        Path(temporary, archive.name).symlink_to(archive.absolute())
        try:
            parse_devkit_archive(temporary)
            names, validation = load_meta_file(temporary)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise DataError(f"{archive} is damaged ({error}): replace it") from error
    return names, validation


def _names(entry: Dataset, root: Path, wnids: list[str]) -> dict[str, str]:
    """Names by WordNet number: the devkit's, those of a list in ``root``, or torchvision's, whose order is theirs."""
    devkit = archive_path(entry.files[2], root)
    if devkit.is_file():
        return {wnid: names[0] for wnid, names in _devkit(devkit)[0].items()}
    if listed := synset_names(root):
        return listed
    if len(wnids) == _CLASSES:
        from torchvision.models import ConvNeXt_Tiny_Weights

        return dict(zip(wnids, ConvNeXt_Tiny_Weights.DEFAULT.meta["categories"], strict=True))
    return {}
