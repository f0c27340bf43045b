"""The catalogue: what is known of each data set before a byte of it is here. Importing it is cheap: no torch, no NumPy.

To add a data set, add a file to this folder, and nothing else:

    from convnext.data.datasets.entries import Dataset, File, register_dataset
    from convnext.data.datasets.fetching import find
    from convnext.data.datasets.listing import list_images
    from convnext.data.splits import make_splits, root_of

    @register_dataset("flowers", Dataset(title="Flowers", ..., files=(File("flowers.tgz", ...),)))
    def flowers(entry, settings):
        root = find(entry, root_of(settings), lambda folder: (folder / "daisy").is_dir())  # fetched at first use
        train, test = (list_images(root, ...) for split in ("train", "test"))
        return make_splits(("daisy", "rose"), {"train": train, "test": test}, settings.test_fraction)

The function gives the sources of the splits that there are; what is missing is held out. What is slow to import, such
as torchvision, it imports in its body. ``food101.py`` is a short example. `convnext datasets`, ``--data.name``,
downloads and the tests of the catalogue know the set from then on.
"""

import importlib
import pkgutil

from convnext.data.datasets.entries import DATASETS, Dataset
from convnext.errors import DataError, did_you_mean

__all__ = ["DATASETS", "FAMILIES", "find_entry"]

# Names that are patterns: what follows the colon says where the images are.
FAMILIES = {
    "hf:": "hf:owner/name: any image classification set of the Hugging Face hub (pip install 'convnext[hub]')",
    "wds:": "wds:pattern: WebDataset shards, such as wds:train-{0000..0099}.tar (pip install 'convnext[wds]')",
}

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def find_entry(name: str) -> Dataset:
    """The catalogue's entry.

    Raises:
        DataError: there is none of that name.
    """
    try:
        return DATASETS[name]
    except KeyError:
        known = [*DATASETS, *FAMILIES]
        raise DataError(f"no data set is called {name!r}: {did_you_mean(name, known)}") from None
