"""MNIST and Fashion-MNIST: four IDX files each."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.data.datasets.entries import Dataset, File, register_dataset, same_names
from convnext.data.datasets.fetching import fetch
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError
from convnext.storage import archives

if TYPE_CHECKING:
    from convnext.config import DataSettings


def _files(folder: str, mirrors: tuple[str, ...], files: tuple[tuple[str, str, int], ...]) -> tuple[File, ...]:
    return tuple(File(f"{name}.gz", f"{folder}/raw/{name}", md5, size, mirrors) for name, md5, size in files)


@register_dataset(
    "mnist",
    Dataset(
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
    ),
)
def mnist(entry: Dataset, settings: "DataSettings") -> Splits:
    """MNIST; the four files may lie in ``<root>/MNIST/raw`` or in ``<root>``, each as it is or with ``.gz``."""
    from torchvision.datasets import MNIST

    return _load(entry, settings, MNIST)


@register_dataset(
    "fashion-mnist",
    Dataset(
        title="Fashion-MNIST",
        summary="clothes, from a shop's catalogue",
        images="grey, 28x28 px",
        licence="MIT",
        home="https://github.com/zalandoresearch/fashion-mnist",
        reported="test: the 10,000 test images",
        classes=10,
        splits={"train": 60_000, "test": 10_000},
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
    ),
)
def fashion_mnist(entry: Dataset, settings: "DataSettings") -> Splits:
    """Fashion-MNIST; the four files may lie in ``<root>/FashionMNIST/raw`` or in ``<root>``, with ``.gz`` or not."""
    from torchvision.datasets import FashionMNIST

    return _load(entry, settings, FashionMNIST)


def _load(entry: Dataset, settings: "DataSettings", kind: Any) -> Splits:
    from convnext.data.sources import ArraySource

    root = root_of(settings)
    names = [Path(file.becomes).name for file in entry.files]
    raw = root / kind.__name__ / "raw"

    def complete(folder: Path) -> bool:
        return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)

    folder = next((folder for folder in (raw, root) if complete(folder)), None)
    if folder is None:
        fetch(entry, root)
        folder = raw
    # The folder may be read-only, such as a Linux distribution's: torchvision reads what it expects elsewhere.
    with tempfile.TemporaryDirectory() as temporary:
        expected = Path(temporary, kind.__name__, "raw")
        expected.mkdir(parents=True)
        for name in names:
            if (folder / name).is_file():
                (expected / name).symlink_to((folder / name).absolute())
            else:
                archives.gunzip(folder / f"{name}.gz", expected / name)
        try:
            loaded = {name: kind(temporary, train=name == "train") for name in ("train", "test")}
        except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"the files of {entry.title} in {folder} are damaged: replace them") from error
    sources = {name: ArraySource(data.data.numpy(), data.targets.numpy(), channels=1) for name, data in loaded.items()}
    if any(len(source.images) != len(source) for source in sources.values()):
        raise DataError(f"the files of {entry.title} in {folder} belong to different sets: replace them")
    return make_splits(tuple(entry.class_names.values()), sources, settings.test_fraction)
