"""WebDataset shards, here or on a web server, as a source by index: ``wds:/data/{train,val}-{000..099}.tar``.

An index (`convnext.data.datasets.shard_files`) says where each image lies, so that any one is read by itself, and a
run goes on in the middle of an epoch. Shards from the web are fetched whole, and kept while there is room: training
reads whole shards, a few at a time (`ImageSource.groups`), so data larger than the disk passes through it once an
epoch.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from convnext.config import DataSettings
from convnext.data.datasets.labels import Labels, number_classes
from convnext.data.datasets.shard_files import Index, Shard, ShardFolder, is_url
from convnext.data.images import Raw, UnreadableImageError
from convnext.data.sources import ImageSource, digest
from convnext.data.splits import SPLIT_BY_SPELLING, Splits, make_splits
from convnext.errors import DataError, UserError
from convnext.storage.downloads import cache_folder


@dataclass(frozen=True)
class ShardSource(ImageSource):
    """Images inside tar files, which ``folder`` opens.

    Of each image: its sample's name in the shard (``keys``), where it starts there and its size in bytes, and, in
    ``groups``, the index of its shard.
    """

    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    targets: NDArray[np.int64]
    channels: int
    shards: tuple[Shard, ...]
    folder: ShardFolder
    groups: NDArray[np.int64]

    def raw(self, index: int) -> Raw:
        """The encoded file's bytes.

        Raises:
            UnreadableImageError: the shard is gone or ends before them.
            DownloadError: the shard cannot be fetched.
        """
        size = int(self.sizes[index])
        try:
            with self.folder.open(self._shard(index)) as file:
                encoded = os.pread(file.fileno(), size, int(self.offsets[index]))
        except OSError as error:
            raise UnreadableImageError(f"{self.image_name(index)}: unreadable image ({error.strerror})") from error
        if len(encoded) < size:
            raise UnreadableImageError(f"{self.image_name(index)}: unreadable image (its shard ends before it)")
        return encoded

    def _shard(self, index: int) -> Shard:
        return self.shards[int(self.groups[index])]

    def image_name(self, index: int) -> str:
        """The shard's path or URL and the sample's name."""
        return f"{self._shard(index).location}:{self.keys[index].decode()}"

    def fingerprint(self) -> str:
        """A digest of the samples' names, sizes and labels: the same wherever the shards lie."""
        return digest(b"\0".join(self.keys.tolist()), self.sizes, self.targets)

    def location(self) -> str:
        """Paths and URLs of the shards."""
        return "\0".join(self.shards[number].location for number in np.unique(self.groups))

    def states(self) -> Iterator[bytes]:
        """The shards' keys, which have their sizes and versions."""
        return (self.shards[number].key.encode() for number in np.unique(self.groups))


def read_shards(settings: DataSettings, folder: ShardFolder | None = None) -> Splits:
    """The splits of ``data.name`` ``wds:PATTERN``, see `expand`; ``folder`` keeps indices and the shards from the web.

    A shard is of the split whose name is a word of its file's name, or of the folders that differ between shards, and
    else of `train`; see `make_splits` for a test that is missing. Classes are in the order of ``classes.txt`` (a name a
    line) in the shards' folder, where there is one.

    Raises:
        UserError: the package is missing.
        DataError: a shard that is missing, damaged, or has no labels; or no room for those from the web.
        DownloadError: a shard that cannot be fetched.
    """
    folder = folder or ShardFolder(cache_folder() / "shards")
    pattern = settings.name.removeprefix("wds:")
    locations = expand(pattern, settings.root)
    split_of = np.array(_split_names(locations))
    if "train" not in split_of:
        raise DataError(f"{pattern}: no shard is of train: all are of {' or '.join(sorted(set(split_of)))}")
    shards = folder.find(locations)
    names = _class_names(locations, folder)
    indices = folder.index_all(shards)
    numbers = {split: np.flatnonzero(split_of == split) for split in np.unique(split_of).tolist()}
    of_split = {split: [indices[number] for number in chosen] for split, chosen in numbers.items()}
    labels = {split: _labels(chosen, pattern) for split, chosen in of_split.items()}
    classes, targets = number_classes(labels, names, pattern)
    sources = {
        split: ShardSource(
            keys=np.array([key.encode() for index in chosen for key in index.keys]),
            offsets=np.concatenate([np.array(index.offsets, np.int64) for index in chosen]),
            sizes=np.concatenate([np.array(index.sizes, np.int64) for index in chosen]),
            targets=targets[split],
            channels=3,  # colour always: one grey picture says nothing about the others
            shards=tuple(shards),
            folder=folder,
            groups=np.repeat(numbers[split], [len(index.keys) for index in chosen]),
        )
        for split, chosen in of_split.items()
    }
    return make_splits(classes, sources, settings.test_fraction)


def expand(pattern: str, root: Path | None) -> list[str]:
    """Absolute paths and URLs of the shards that a pattern names.

    Braces hold a range (``{000..099}``) or a list (``{train,val}``); ``*``, ``?`` and ``[…]`` stand for the names that
    are there, on this machine; ``::`` joins patterns. Relative paths start at ``root``, or in the working folder.

    Raises:
        UserError: the package that expands braces is missing.
        DataError: nothing has such a name, or a shard that is neither a plain tar file nor in a folder or on the web.
    """
    try:
        # All that is needed of webdataset's package: its readers are streams, which cannot go on in the middle.
        from braceexpand import braceexpand
    except ImportError:
        raise UserError("data sets of shards need a package: pip install 'convnext[wds]'") from None
    locations: dict[str, None] = {}
    for joined in pattern.split("::"):
        try:
            expanded = list(braceexpand(joined))
        except ValueError:
            raise DataError(f"data.name: {joined!r} has a brace without its other half") from None
        for location in expanded:
            locations.update(dict.fromkeys(_existing(location, root)))
    for location in locations:
        path = urlsplit(location).path if is_url(location) else location
        if not path.endswith(".tar"):
            raise DataError(f"{location} does not end in .tar: shards are tar files that are not compressed")
    return list(locations)


def _existing(location: str, root: Path | None) -> list[str]:
    if is_url(location):
        return [location]
    if scheme := re.match(r"(pipe|\w+(?=://)):", location):
        raise DataError(
            f"data.name: shards in folders and at http:// and https:// can be read, but not {scheme[0]}… (commands are "
            f"never run)"
        )
    path = os.path.abspath((root or Path()) / Path(location).expanduser())  # noqa: PTH100  # keeps links
    if Path(path).exists() or not re.search(r"[*?[]", location):
        return [path]
    if not (paths := sorted(glob(path))):
        raise DataError(f"no file is called {path}")
    return paths


def _common_folder(locations: Sequence[str]) -> str:
    """The path of the innermost folder that has all the shards; of URLs, the path on their server."""
    paths = (urlsplit(location).path if is_url(location) else location for location in locations)
    return os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120


def _split_names(locations: Sequence[str]) -> list[str]:
    """The split of each shard."""
    start = len(_common_folder(locations))
    names = []
    for location in locations:
        path = urlsplit(location).path if is_url(location) else location
        words = [word for word in re.split("[^a-z]+", path[start:].lower()) if word in SPLIT_BY_SPELLING]
        names.append(SPLIT_BY_SPELLING[words[-1]] if words else "train")
    return names


def _class_names(locations: Sequence[str], folder: ShardFolder) -> list[str] | None:
    """The lines of ``classes.txt`` beside the shards; None without one.

    Raises:
        DataError: a name that is empty or there twice, or a file that is not UTF-8.
    """
    location = f"{_common_folder(locations).rstrip('/')}/classes.txt"
    if is_url(locations[0]):
        location = urlsplit(locations[0])._replace(path=location, query="", fragment="").geturl()
    if (shard := folder.look(location)) is None:
        return None
    with folder.open(shard) as file:
        try:
            names = file.read().decode("utf-8-sig").strip().splitlines()
        except ValueError as error:
            raise DataError(f"{location} is not UTF-8: {error}") from error
    names = [name.strip() for name in names]
    if "" in names or len(set(names)) < len(names):
        raise DataError(f"{location}: a class name is empty or there twice; it needs one name a line")
    return names


def _labels(indices: Sequence[Index], pattern: str) -> Labels:
    labels = [label for index in indices for label in index.labels]
    kinds = set(map(type, labels))
    if len(kinds) > 1:
        raise DataError(f"{pattern}: some labels are numbers and others are names: use one kind")
    return np.array(labels, np.int64) if kinds == {int} else np.array(labels, np.str_)
