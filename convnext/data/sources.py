"""Labelled images by index, in arrays or in files, and the statistics of their pixels."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.config import MAX_PIXELS, DataSettings
from convnext.data.images import Picture, Raw, UnreadableImageError
from convnext.errors import DataError

_IMAGES_MEASURED, _FILES_MEASURED = 1000, 8
_KINDS_NAMED = 6

Source = TypeVar("Source", bound="ImageSource")


class ImageSource(ABC):
    """``N`` labelled images, by index. An attribute that is an array has one item an image."""

    targets: NDArray[np.int64]  # class indices
    channels: int  # 3 or 1: what `load` returns
    in_memory: bool = False  # whether pixels lie decoded in this process: workers would gain nothing
    one_size: bool = False  # whether all images are known to be of one size, before they are read
    # Numbers of the files that images lie in together, where reading those in turn is much faster; else None.
    groups: NDArray[np.int64] | None = None
    max_pixels: int = MAX_PIXELS  # this and the next one as in the settings
    max_value: float | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def raw(self, index: int) -> Raw:
        """The image as it is stored: an encoded file's bytes, or ``(H, W)`` or ``(H, W, C)`` uint8 pixels.

        Raises:
            UnreadableImageError: it cannot be read; the message names it.
        """

    @abstractmethod
    def image_name(self, index: int) -> str:
        """What to call the image in a report: its path, or its number."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of which images these are, with their labels."""

    def location(self) -> str:
        """Where the images lie, unless the fingerprint is that of their pixels."""
        return ""

    def states(self) -> Iterator[bytes]:
        """What changes with the pixels of these images where the fingerprint does not: see `file_state`."""
        yield from ()

    def subset(self: Source, indices: NDArray[np.int64]) -> Source:
        """The images at ``indices``, in that order."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return self._changed({name: array[indices] for name, array in arrays.items()})

    def configured(self: Source, settings: DataSettings) -> Source:
        """The same images, read as the settings say."""
        return self._changed({"max_pixels": settings.max_pixels, "max_value": settings.max_value})

    def _changed(self: Source, changes: dict[str, Any]) -> Source:
        changed = copy(self)
        vars(changed).update(changes)
        return changed

    def picture(self, index: int) -> Picture:
        """The image, not decoded yet."""
        raw, name = self.raw(index), self.image_name(index)
        return Picture(raw, self.channels, name, max_pixels=self.max_pixels, max_value=self.max_value)

    def load(self, index: int) -> Image.Image:
        """The image, mode ``RGB`` or ``L``.

        Raises:
            UnreadableImageError: a file that cannot be decoded; the message names it.
        """
        return self.picture(index).decode()


@dataclass(frozen=True)
class ArraySource(ImageSource):
    """Images in one array: ``(N, H, W)`` or ``(N, H, W, C)`` uint8 pixels."""

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    channels: int
    in_memory = one_size = True

    def raw(self, index: int) -> Raw:
        """The pixels."""
        pixels: NDArray[np.uint8] = self.images[index]
        return pixels

    def image_name(self, index: int) -> str:
        """The image's number."""
        return f"#{index}"

    def fingerprint(self) -> str:
        """A digest of pixels and labels."""
        return digest(self.images, self.targets)


@dataclass(frozen=True)
class LeftOut:
    """What lies among image files and is not read, by kind: the end of a file's name, or another reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, path: str) -> None:
        """Count what lies at ``path``."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, path)

    def lines(self) -> tuple[str, ...]:
        """A line that has the most frequent kinds, with an example of each; none where nothing is left out."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{kind} {count:,} (such as {self.examples[kind]})" for kind, count in ordered[:_KINDS_NAMED]]
        more = ", …" if len(ordered) > len(kinds) else ""
        heic = "; convert HEIC to JPEG or PNG to use it" if {".heic", ".heif"} & set(self.counts) else ""
        return (f"left out: {', '.join(kinds)}{more}{heic}",) if kinds else ()


@dataclass(frozen=True)
class FileSource(ImageSource):
    """Image files below a folder: ``(N,)`` paths relative to it as bytes, one array whose memory workers share."""

    paths: NDArray[np.bytes_]
    targets: NDArray[np.int64]
    channels: int
    root: Path
    left_out: LeftOut = field(default_factory=LeftOut)
    one_size: bool = False

    def raw(self, index: int) -> Raw:
        """The file's bytes."""
        path = self.path(index)
        try:
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"{path}: unreadable image ({error.strerror})") from error

    def path(self, index: int) -> Path:
        """The file's path."""
        return self.root / os.fsdecode(self.paths[index])

    def image_name(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))  # noqa: PTH118  # every picture has one

    def fingerprint(self) -> str:
        """A digest of relative paths and labels."""
        return digest(b"\0".join(self.paths.tolist()), self.targets)

    def location(self) -> str:
        """The folder, without links."""
        return os.path.realpath(self.root)

    def states(self) -> Iterator[bytes]:
        """Those of the files."""
        folder = os.fsencode(self.location())
        return (file_state(folder + b"/" + path) for path in self.paths.tolist())


@dataclass(frozen=True)
class JoinedSource(ImageSource):
    """The images of several sources, in turn: image ``i`` is number ``indices[i]`` of ``sources[of[i]]``."""

    sources: tuple[ImageSource, ...]
    of: NDArray[np.int64]
    indices: NDArray[np.int64]
    targets: NDArray[np.int64]
    channels: int
    in_memory: bool = False
    one_size: bool = False

    def _source(self, index: int) -> ImageSource:
        return self.sources[int(self.of[index])]

    def raw(self, index: int) -> Raw:
        """As its source gives it."""
        return self._source(index).raw(int(self.indices[index]))

    def picture(self, index: int) -> Picture:
        """As its source reads it."""
        return self._source(index).picture(int(self.indices[index]))

    def image_name(self, index: int) -> str:
        """As its source calls it."""
        return self._source(index).image_name(int(self.indices[index]))

    def fingerprint(self) -> str:
        """A digest of the sources' own, and of which of their images these are."""
        return digest("".join(source.fingerprint() for source in self.sources).encode(), self.of, self.indices)

    def location(self) -> str:
        """The sources' own."""
        return "\0".join(source.location() for source in self.sources)

    def states(self) -> Iterator[bytes]:
        """Those of each source in turn."""
        for number, source in enumerate(self.sources):
            yield from source.subset(self.indices[self.of == number]).states()


def join(sources: Sequence[ImageSource]) -> JoinedSource:
    """All images of the sources, in order; they are those of one data set."""
    sizes = [len(source) for source in sources]
    indices = np.concatenate([np.arange(size) for size in sizes])
    targets = np.concatenate([source.targets for source in sources])
    of = np.repeat(np.arange(len(sizes)), sizes)
    in_memory, one_size = (all(getattr(source, name) for source in sources) for name in ("in_memory", "one_size"))
    joined = JoinedSource(tuple(sources), of, indices, targets, sources[0].channels, in_memory, one_size)
    return joined._changed({name: getattr(sources[0], name) for name in ("max_pixels", "max_value")})


def file_state(path: bytes) -> bytes:
    """What changes with a file's contents, or with the right to read it."""
    try:
        status = os.stat(path)  # noqa: PTH116  # of a million files: a Path each would double the time
    except OSError as error:
        return b"%d" % (error.errno or 0)
    return b"%d %d %d" % (status.st_size, status.st_mtime_ns, status.st_mode)


def digest(*contents: bytes | NDArray[Any]) -> str:
    """16 bytes of BLAKE2b of the contents, one after the other, in hexadecimal."""
    hasher = blake2b(digest_size=16)
    for content in contents:
        hasher.update(content if isinstance(content, bytes) else content.tobytes())
    return hasher.hexdigest()


def statistics(source: ImageSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and standard deviations of the pixels, on a scale of 0 to 1.

    Measured on all images in memory, or on at most 1,000 others, spread evenly over the source (over 8 of its files,
    where images lie in files together), each at no more than 256 px; unreadable images are left out.

    Raises:
        DataError: none of them can be read.
    """
    if source.groups is not None:  # measuring images of all files would fetch all
        files = np.unique(source.groups)
        chosen = files[np.linspace(0, len(files) - 1, min(_FILES_MEASURED, len(files))).astype(int)]
        source = source.subset(np.flatnonzero(np.isin(source.groups, chosen)))
    limit = len(source) if source.in_memory else min(_IMAGES_MEASURED, len(source))
    total, squares, count = np.zeros(source.channels), np.zeros(source.channels), 0
    problems: list[UnreadableImageError] = []
    for index in np.linspace(0, len(source) - 1, limit).astype(int):
        try:
            image = source.load(int(index))
        except UnreadableImageError as error:
            problems.append(error)
            continue
        image.thumbnail((256, 256))
        pixels = np.asarray(image, np.float64).reshape(-1, source.channels) / 255
        total += pixels.sum(0)
        squares += (pixels**2).sum(0)
        count += len(pixels)
    if not count:
        raise DataError(f"none of {len(problems):,} images can be read; the first: {problems[0]}")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
