"""MNIST and Fashion-MNIST: four IDX files each."""

import tempfile
from dataclasses import replace
from pathlib import Path

from convnext.data.datasets.entries import Dataset, File, Settings, register_dataset, same_names
from convnext.data.datasets.fetching import fetch
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError
from convnext.storage import archives


def _files(folder: str, mirrors: tuple[str, ...], files: tuple[tuple[str, str, int], ...]) -> tuple[File, ...]:
    return tuple(File(f"{name}.gz", f"{folder}/raw/{name}", md5, size, mirrors) for name, md5, size in files)


MNIST = Dataset(
    title="MNIST",
    summary="handwritten digits",
    images="grey, 28x28 px",
    licence="CC BY-SA 3.0",
    home="http://yann.lecun.com/exdb/mnist/",
    reported="test: the 10,000 test images",
    classes=10,
    splits={"train": 60_000, "test": 10_000},
    files=_files(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        (
            ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
            ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
            ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
            ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
        ),
    ),
    class_names=same_names(*"0123456789"),
    mean=(0.1307,),
    std=(0.3081,),
)
FASHION_MNIST = replace(
    MNIST,
    title="Fashion-MNIST",
    summary="clothes, from a shop's catalogue",
    licence="MIT",
    home="https://github.com/zalandoresearch/fashion-mnist",
    files=_files(
        "FashionMNIST",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
            ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
            ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
            ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
        ),
    ),
    class_names=same_names(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=(0.2860,),
    std=(0.3530,),
)


@register_dataset("mnist", MNIST)
@register_dataset("fashion-mnist", FASHION_MNIST)
def mnist(entry: Dataset, settings: Settings) -> Splits:
    """The four files may lie in ``<root>/<MNIST or FashionMNIST>/raw`` or in ``<root>``, each with ``.gz`` or not."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    from convnext.data.sources import ArraySource

    root = root_of(settings)
    raw = (root / entry.files[0].becomes).parent
    names = [Path(file.becomes).name for file in entry.files]

    def complete(folder: Path) -> bool:
        return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)

    folder = next((folder for folder in (raw, root) if complete(folder)), None)
    if folder is None:
        fetch(entry, root)
        folder = raw
    arrays = []
    with tempfile.TemporaryDirectory() as temporary:  # the folder may be read-only, such as a Linux distribution's
        for name in names:
            if not (path := folder / name).is_file():
                path = Path(temporary, name)
                archives.gunzip(folder / f"{name}.gz", path)
            try:
                arrays.append((read_image_file if "images" in name else read_label_file)(str(path)).numpy())
            except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
                raise DataError(f"the files of {entry.title} in {folder} are damaged: replace them") from error
    sources = {"train": ArraySource(arrays[0], arrays[1], 1), "test": ArraySource(arrays[2], arrays[3], 1)}
    if any(len(source.images) != len(source) for source in sources.values()):
        raise DataError(f"the files of {entry.title} in {folder} belong to different sets: replace them")
    return make_splits(tuple(entry.class_names.values()), sources, settings.test_fraction)
