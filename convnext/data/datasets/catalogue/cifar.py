"""CIFAR-10 and CIFAR-100."""

from dataclasses import replace

from convnext.data.datasets.entries import Dataset, File, Settings, register_dataset, same_names
from convnext.data.datasets.fetching import find
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError

_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)

CIFAR10 = Dataset(
    title="CIFAR-10",
    summary="small photographs of animals and vehicles",
    images="colour, 32x32 px",
    licence="none stated; cite Krizhevsky 2009",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    reported="test: the 10,000 test images",
    classes=10,
    splits={"train": 50_000, "test": 10_000},
    files=(
        File(
            *("cifar-10-python.tar.gz", "cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a", 170_498_071),
            mirrors=_MIRRORS,
        ),
    ),
    class_names=same_names(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = replace(
    CIFAR10,
    title="CIFAR-100",
    summary="small photographs of 100 things",
    classes=100,
    files=(
        File(
            *("cifar-100-python.tar.gz", "cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85", 169_001_437),
            mirrors=_MIRRORS,
        ),
    ),
    class_names={},
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


@register_dataset("cifar10", CIFAR10)
@register_dataset("cifar100", CIFAR100)
def cifar(entry: Dataset, settings: Settings) -> Splits:
    """CIFAR-10, or CIFAR-100 with its 100 fine labels."""
    import numpy as np
    from torchvision import datasets

    from convnext.data.sources import ArraySource

    kind = datasets.CIFAR10 if entry.classes == 10 else datasets.CIFAR100
    name, meta = kind.base_folder, kind.meta["filename"]
    folder = find(entry, root_of(settings), lambda root: root.name == name and (root / meta).is_file())
    try:
        # torchvision checks every file's MD5 before it unpickles it.
        loaded = {name: kind(folder.parent, train=name == "train") for name in ("train", "test")}
    except RuntimeError:
        raise DataError(
            f"{folder} lacks files of {entry.title}, or they are damaged: remove it, and it is fetched again"
        ) from None
    sources = {
        name: ArraySource(data.data, np.array(data.targets, np.int64), channels=3) for name, data in loaded.items()
    }
    classes = tuple(name.replace("_", " ") for name in loaded["train"].classes)
    return make_splits(classes, sources, settings.test_fraction)
