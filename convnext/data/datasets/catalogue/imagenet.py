"""ImageNet-1K: the official archives, unpacked into class folders, or the folders themselves."""

import tempfile
from pathlib import Path

from convnext.data.datasets.entries import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    IMAGENET_TERMS,
    Dataset,
    File,
    Settings,
    register_dataset,
)
from convnext.data.datasets.fetching import archive_path, preparing
from convnext.data.datasets.listing import human_names, list_images, subfolders, synset_names
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError
from convnext.output import say
from convnext.storage import archives

_CLASSES = 1000


def prepare(entry: Dataset, root: Path) -> None:
    """Unpack the official archives in ``root``, where train/ or val/ is not there yet.

    Raises:
        DataError: an archive is missing (the message says how to come by it), damaged, or there is no room.
    """
    train, val, devkit = entry.files
    folders = [file for file in (train, val) if not (root / file.becomes).is_dir()]
    needed = [*folders, devkit] if val in folders else folders
    if missing := [file.name for file in needed if not archive_path(file, root).is_file()]:
        raise DataError(f"{entry.title} is not in {root} ({', '.join(missing)} missing): {entry.instructions}")
    for file in folders:
        with preparing(entry, root):
            archive = archive_path(file, root)
            if (root / file.becomes).is_dir():
                continue  # another process did it while we waited
            say(f"unpacking {archive}")
            archives.verify(archive, file.md5)
            if file is train:
                archives.unpack_classes(archive, root / file.becomes)
            else:
                # The devkit has the classes of the flat archive's images, in the order of their names.
                classes = _devkit(archive_path(devkit, root))[1]
                names = {f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in enumerate(classes, 1)}
                paths = {name: f"{wnid}/{name}" for name, wnid in names.items()}
                archives.unpack(archive, root / file.becomes, paths.get)


@register_dataset(
    "imagenet",
    Dataset(
        title="ImageNet-1K (ILSVRC 2012)",
        summary="1,000 classes of things and animals, the usual yardstick",
        images="colour, of many sizes, about 500x400 px",
        licence=IMAGENET_TERMS,
        home="https://image-net.org/challenges/LSVRC/2012/",
        reported="val: the 50,000 validation images; the labels of the test images were never published",
        classes=_CLASSES,
        splits={"train": 1_281_167, "val": 50_000},
        files=(
            File("ILSVRC2012_img_train.tar", "train", "1d675b47d978889d74fa0da5fadfb00e", 147_897_477_120),
            File("ILSVRC2012_img_val.tar", "val", "29b22e2961454d5413ddabcf34fc5622", 6_744_924_160),
            File("ILSVRC2012_devkit_t12.tar.gz", "", "fa75699e90414af021442c21a62c3abf", None),
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        instructions="register at https://image-net.org/download-images, accept the terms, and put "
        "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz into data.root (they are "
        "unpacked at first use), or the extracted train/<wnid>/ and val/<wnid>/",
    ),
    fetcher=prepare,
)
def imagenet(entry: Dataset, settings: Settings) -> Splits:
    """ImageNet-1K, tested on its validation images; classes that train/ lacks are left out of val/."""
    root = root_of(settings)
    prepare(entry, root)
    wnids = subfolders(root, "train")
    subfolders(root, "val")  # a flat val/ is the most common mistake
    if len(wnids) < 2:
        raise DataError(f"{root / 'train'} has one class only: a classifier needs at least two class folders")
    sources = {name: list_images(root, (f"{name}/{wnid}" for wnid in wnids)) for name in ("train", "val")}
    return make_splits(human_names(wnids, _names(entry, root, wnids)), sources, settings.test_fraction)


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
