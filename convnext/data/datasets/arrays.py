"""The data sets of small images, which lie in memory whole: digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from convnext.config import DataSettings
from convnext.data.datasets.catalogue import Dataset
from convnext.data.datasets.fetching import fetch, find
from convnext.data.sources import ArraySource, stratified_split
from convnext.data.splits import SPLIT_SEED, Splits, root_of
from convnext.errors import DataError
from convnext.storage import archives


def digits(entry: Dataset, settings: DataSettings) -> Splits:
    """Scikit-learn's digits, with a stratified test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    source = ArraySource(images, data.target.astype(np.int64), channels=1)
    train, test = stratified_split(source, settings.test_fraction, SPLIT_SEED)
    return Splits(tuple(entry.class_names.values()), train, None, test)


def mnist(entry: Dataset, settings: DataSettings) -> Splits:
    """MNIST; the four files may lie in ``<root>/MNIST/raw`` or in ``<root>``, each as it is or with ``.gz``."""
    from torchvision.datasets import MNIST

    return _idx(entry, root_of(settings), MNIST)


def fashion_mnist(entry: Dataset, settings: DataSettings) -> Splits:
    """Fashion-MNIST; the four files may lie in ``<root>/FashionMNIST/raw`` or in ``<root>``, with ``.gz`` or not."""
    from torchvision.datasets import FashionMNIST

    return _idx(entry, root_of(settings), FashionMNIST)


def _idx(entry: Dataset, root: Path, kind: Any) -> Splits:
    names = [Path(file.becomes).name for file in entry.files]
    raw = root / kind.__name__ / "raw"

    def complete(folder: Path) -> bool:
        return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)

    folder = next((place for place in (raw, root) if complete(place)), None)
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
            parts = [kind(temporary, train=train) for train in (True, False)]
        except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"the files of {entry.title} in {folder} are damaged: replace them") from error
    sources = [ArraySource(part.data.numpy(), part.targets.numpy(), channels=1) for part in parts]
    if any(len(source.images) != len(source) for source in sources):
        raise DataError(f"the files of {entry.title} in {folder} belong to different sets: replace them")
    return Splits(tuple(entry.class_names.values()), sources[0], None, sources[1])


def cifar10(entry: Dataset, settings: DataSettings) -> Splits:
    """CIFAR-10."""
    from torchvision.datasets import CIFAR10

    return _cifar(entry, root_of(settings), CIFAR10)


def cifar100(entry: Dataset, settings: DataSettings) -> Splits:
    """CIFAR-100, with its 100 fine labels."""
    from torchvision.datasets import CIFAR100

    return _cifar(entry, root_of(settings), CIFAR100)


def _cifar(entry: Dataset, root: Path, kind: Any) -> Splits:
    name, meta = kind.base_folder, kind.meta["filename"]
    folder = find(entry, root, lambda root: root.name == name and (root / meta).is_file())
    try:
        # torchvision checks every file's MD5 before it unpickles it.
        train, test = (kind(folder.parent, train=part) for part in (True, False))
    except RuntimeError:
        raise DataError(
            f"{folder} lacks files of {entry.title}, or they are damaged: remove it, and it is fetched again"
        ) from None
    sources = [ArraySource(part.data, np.array(part.targets, np.int64), channels=3) for part in (train, test)]
    return Splits(tuple(name.replace("_", " ") for name in train.classes), sources[0], None, sources[1])
