"""CIFAR-10 and CIFAR-100."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convnext.data.datasets.entries import Dataset, File, register_dataset, same_names
from convnext.data.datasets.fetching import find
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError

if TYPE_CHECKING:
    from convnext.config import DataSettings


def _entry(
    classes: int,
    folder: str,
    md5: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: Mapping[str, str],
) -> Dataset:
    name = f"cifar-{classes}-python.tar.gz"
    return Dataset(
        title=f"CIFAR-{classes}",
        summary="small photographs of animals and vehicles" if classes == 10 else "small photographs of 100 things",
        images="colour, 32x32 px",
        licence="none stated; cite Krizhevsky 2009",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        reported="test: the 10,000 test images",
        classes=classes,
        splits={"train": 50_000, "test": 10_000},
        files=(File(name, folder, md5, size, ("https://www.cs.toronto.edu/~kriz/",), holds=folder),),
        class_names=class_names,
        mean=mean,
        std=std,
    )


@register_dataset(
    "cifar10",
    _entry(
        *(10, "cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a", 170_498_071),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        class_names=same_names(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
)
def cifar10(entry: Dataset, settings: "DataSettings") -> Splits:
    """CIFAR-10."""
    from torchvision.datasets import CIFAR10

    return _load(entry, settings, CIFAR10)


@register_dataset(
    "cifar100",
    _entry(
        *(100, "cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85", 169_001_437),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        class_names={},
    ),
)
def cifar100(entry: Dataset, settings: "DataSettings") -> Splits:
    """CIFAR-100, with its 100 fine labels."""
    from torchvision.datasets import CIFAR100

    return _load(entry, settings, CIFAR100)


def _load(entry: Dataset, settings: "DataSettings", kind: Any) -> Splits:
    import numpy as np

    from convnext.data.sources import ArraySource

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
