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
    """One file of a data set, and what becomes of it.

    Attributes:
        name: the file's name.
        becomes: what it is unpacked to, relative to ``data.root``; until then the file lies beside that. An archive has
            a folder of that name, whose contents are taken.
        md5: its checksum.
        size: in bytes; None where it is not known for certain.
        mirrors: URLs of the folders that have it, in the order to try; none where an account is needed.
        within: path in the archive of the archive that holds it; empty for none.
    """

    name: str
    becomes: str
    md5: str
    size: int | None
    mirrors: tuple[str, ...] = ()
    within: str = ""


@dataclass(frozen=True)
class Dataset:
    """A catalogue entry.

    Sizes, counts and checksums are the publishers' or torchvision's.

    Attributes:
        title: the name that people use.
        summary: one line: what is on the images.
        images: how large they are, and what else there is to know of the pixels.
        licence: the terms, as its publishers state them.
        home: where it is described.
        reported: which images published numbers are measured on, or what stands in for them.
        classes: their number; None where it depends on the folder.
        splits: number of images by split.
        files: what there is to download.
        class_names: names for people, by the class's name in the files; empty where the files tell.
        mean: channel means on a scale of 0 to 1, as usually published; empty where they are measured.
        std: channel standard deviations on that scale; empty where they are measured.
        instructions: how to come by the files, where they cannot be downloaded.
    """

    title: str
    summary: str
    images: str
    licence: str
    home: str
    reported: str
    classes: int | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    instructions: str = ""

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
    """Put a data set into the catalogue, under `name`, with the function that loads it.

    Args:
        name: what ``--data.name`` calls it.
        entry: what is known of it.
        fetcher: gets its files into a folder, where that takes more than to download and unpack ``entry.files``.

    Returns:
        A decorator of a function from the entry and the settings to the splits; see `make_splits`.

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
