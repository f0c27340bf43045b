"""Imagenette and Imagewoof, each in three sizes. Checksums of Imagewoof are those that several projects verify."""

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
from convnext.data.datasets.fetching import find
from convnext.data.datasets.listing import human_names, list_images, subfolders
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError

_NETTE_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
_WOOF_NAMES = {
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}


def _entry(title: str, shorter_edge: int | None, md5: str, size: int) -> Dataset:
    folder = f"{title.lower()}2" + (f"-{shorter_edge}" if shorter_edge else "")
    nette = title == "Imagenette"
    mirrors = ("https://s3.amazonaws.com/fast-ai-imageclas/",)
    return Dataset(
        title=f"{title} ({f'{shorter_edge} px' if shorter_edge else 'full size'})",
        summary="ten easy classes of ImageNet" if nette else "ten breeds of dogs of ImageNet",
        images=f"colour, the shorter side {shorter_edge} px" if shorter_edge else "colour, of ImageNet's sizes",
        licence=f"Apache-2.0; images: {IMAGENET_TERMS}",
        home="https://github.com/fastai/imagenette",
        reported="val: all validation images; there is no test split",
        classes=10,
        splits={"train": 9_469, "val": 3_925} if nette else {"train": 9_025, "val": 3_929},
        files=(File(f"{folder}.tgz", folder, md5, size, mirrors),),
        class_names=_NETTE_NAMES if nette else _WOOF_NAMES,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


@register_dataset("imagenette", _entry("Imagenette", None, "fe2fc210e6bb7c5664d602c3cd71e612", 1_557_161_267))
@register_dataset("imagenette320", _entry("Imagenette", 320, "3df6f0d01a2c9592104656642f5e78a3", 341_663_724))
@register_dataset("imagenette160", _entry("Imagenette", 160, "e793b78cc4c9e9a4ccc0c1155377a412", 99_003_388))
@register_dataset("imagewoof", _entry("Imagewoof", None, "9aafe18bcdb1632c4249a76c458465ba", 1_343_715_595))
@register_dataset("imagewoof320", _entry("Imagewoof", 320, "0f46d997ec2264e97609196c95897a44", 328_387_740))
@register_dataset("imagewoof160", _entry("Imagewoof", 160, "3d200a7be99704a0d7509be2a9fbfe15", 92_612_825))
def imagenette(entry: Dataset, settings: Settings) -> Splits:
    """Imagenette or Imagewoof: ``train/<wnid>/`` and ``val/<wnid>/``, tested on val/."""

    def known(folder: Path) -> bool:
        return any((folder / "train" / wnid).is_dir() for wnid in entry.class_names)

    root = find(entry, root_of(settings), known)
    wnids = subfolders(root, "train")
    if unknown := [wnid for wnid in wnids if wnid not in entry.class_names]:
        raise DataError(f"{root / 'train'} is not that of {entry.title}: it has {', '.join(unknown[:5])}")
    sources = {name: list_images(root, (f"{name}/{wnid}" for wnid in wnids)) for name in ("train", "val")}
    return make_splits(human_names(wnids, entry.class_names), sources, settings.test_fraction)
