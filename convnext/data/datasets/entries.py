"""What the catalogue knows of a data set, and how a module of `convnext.data.datasets.catalogue` puts it there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from convnext.config import DataSettings
    from convnext.data.splits import Splits

IMAGENET_TERMS = "ImageNet's terms (non-commercial research and education)"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class File:
    """One file of a data set, and what becomes of it."""

    name: str
    # What it is unpacked to, relative to data.root; until then the file lies beside that. An archive has a folder of
    # that name, whose contents are taken.
    becomes: str
    md5: str
    size: int | None  # in bytes; None where it is not known for certain
    mirrors: tuple[str, ...] = ()  # URLs of the folders that have it, in the order to try; none for an account's
    within: str = ""  # path in the archive of the archive that is meant instead


@dataclass(frozen=True)
class Dataset:
    """A catalogue entry.

    Sizes, counts and checksums are the publishers' or torchvision's; so are the channels' means and standard deviations
    on a scale of 0 to 1, which are empty where they are measured.
    """

    title: str  # the name that people use
    summary: str  # one line: what is on the images
    images: str  # how large they are, and what else there is to know of the pixels
    licence: str  # the terms, as its publishers state them
    home: str  # where it is described
    reported: str  # which images published numbers are measured on, or what stands in for them
    classes: int | None = None  # their number; None where it depends on the folder
    splits: Mapping[str, int] = field(default_factory=dict)  # number of images
    files: tuple[File, ...] = ()  # what there is to download
    class_names: Mapping[str, str] = field(default_factory=dict)  # by those in the files; empty where these will do
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    instructions: str = ""  # how to come by the files, where they cannot be downloaded

    @property
    def size(self) -> int | None:
        """Bytes to download, as far as they are known; None where nothing is."""
        return sum(file.size or 0 for file in self.files) or None


Settings: TypeAlias = "DataSettings"  # whose import would make `convnext datasets` slow
Loader: TypeAlias = "Callable[[Dataset, DataSettings], Splits]"
Fetcher: TypeAlias = Callable[[Dataset, Path], None]

DATASETS: dict[str, Dataset] = {}
LOADERS: dict[str, Loader] = {}
FETCHERS: dict[str, Fetcher] = {}


def register_dataset(name: str, entry: Dataset, fetcher: Fetcher | None = None) -> Callable[[Loader], Loader]:
    """Put a data set into the catalogue, under the name that ``--data.name`` calls it: a decorator of the function that
    makes its splits of the entry and the settings; see `make_splits`.

    ``fetcher`` gets its files into a folder, where that takes more than to download and unpack ``entry.files``.

    Raises:
        ValueError: the name is taken.
    """
    if name in DATASETS:
        raise ValueError(f"two data sets are called {name!r}: choose another name")

    def register(loader: Loader) -> Loader:
        DATASETS[name] = entry
        LOADERS[name] = loader
        if fetcher is not None:
            FETCHERS[name] = fetcher
        return loader

    return register


def same_names(*names: str) -> Mapping[str, str]:
    """Class names that are for people as they are."""
    return {name: name for name in names}
