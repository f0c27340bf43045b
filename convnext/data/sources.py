"""Labelled images by index, in arrays or in files, and the statistics of their pixels."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.config import MAX_PIXELS, DataSettings
from convnext.data.images import Picture, Raw, UnreadableImageError
from convnext.errors import DataError

_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_IMAGES_MEASURED, _FILES_MEASURED = 1000, 8
_LISTINGS_KEPT = 3  # a folder's train, val and test
_SETTLED = 2_000_000_000  # nanoseconds; a file that comes right after a listing may leave a folder's time as it was

Source = TypeVar("Source", bound="ImageSource")


class ImageSource(ABC):
    """``N`` labelled images, by index. An attribute that is an array has one item an image."""

    targets: NDArray[np.int64]  # class indices
    channels: int  # 3 or 1: what `load` returns
    in_memory: ClassVar[bool] = False  # whether pixels lie decoded in this process: workers would gain nothing
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
    in_memory: ClassVar[bool] = True

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
class FileSource(ImageSource):
    """Image files below a folder: ``(N,)`` paths relative to it as bytes, one array whose memory workers share."""

    paths: NDArray[np.bytes_]
    targets: NDArray[np.int64]
    channels: int
    root: Path

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


def digest(*contents: bytes | NDArray[Any]) -> str:
    """16 bytes of BLAKE2b of the contents, one after the other, in hexadecimal."""
    hasher = blake2b(digest_size=16)
    for content in contents:
        hasher.update(content if isinstance(content, bytes) else content.tobytes())
    return hasher.hexdigest()


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's; hidden files are left out."""
    return not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES


def class_folders(folder: Path) -> list[str]:
    """Names of the sub-folders of ``folder``, sorted; hidden ones left out.

    Raises:
        DataError: a name that is not UTF-8, which no report could hold.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{folder} has a class folder whose name is not readable text: {name!r}; rename it"
            ) from None
    return names


_States = dict[str, tuple[int, int, int]]  # of folders: they change when a name comes or goes
# Choosing by the images, training and evaluating in one process look at the same folder, which may have millions.
_listings: dict[tuple[str, tuple[str, ...]], tuple[FileSource, _States]] = {}


def _states(folders: Iterable[str]) -> _States:
    """When each folder changed; nothing where one is not there."""
    try:
        statuses = {folder: os.stat(folder) for folder in folders}  # noqa: PTH116  # of many folders
    except OSError:
        return {}
    return {folder: (status.st_mtime_ns, status.st_dev, status.st_ino) for folder, status in statuses.items()}


def scan_folder(folder: Path, classes: list[str]) -> FileSource:
    """All images below ``folder/<class>/``, sorted by path; listed once as long as no folder among them changes.

    Raises:
        DataError: a class folder without images, or one that is not among ``classes``.
    """
    unknown = [name for name in class_folders(folder) if name not in classes]
    if unknown:
        raise DataError(f"{folder} has classes that the training images lack: {', '.join(unknown[:5])}")
    key = (os.path.realpath(folder), tuple(classes))
    if (listing := _listings.get(key)) is not None and _states(listing[1]) == listing[1]:
        return replace(listing[0], root=folder)
    start = time.time_ns()
    paths: list[bytes] = []
    targets: list[int] = []
    visited: list[str] = []
    for target, name in enumerate(classes):
        of_class = sorted(_image_files(folder / name, folder, visited))
        paths += of_class
        targets += [target] * len(of_class)
    if not paths:
        raise DataError(f"{folder} has no images in its class folders: expected {folder}/<class>/*.jpg (or .png, …)")
    # Colour always: one grey picture among the files says nothing about the others.
    source = FileSource(np.array(paths), np.array(targets, np.int64), channels=3, root=folder)
    _listings.pop(key, None)
    states = _states(map(os.path.abspath, visited))
    if states and all(changed < start - _SETTLED for changed, _, _ in states.values()):
        _listings[key] = source, states
        if len(_listings) > _LISTINGS_KEPT:
            del _listings[next(iter(_listings))]
    return source


def _image_files(folder: Path, root: Path, visited: list[str]) -> Iterator[bytes]:
    """Paths of the images below a folder, relative to ``root``; its folders are added to ``visited``."""
    seen = {os.path.realpath(parent) for parent in folder.parents}  # links may lead back
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        visited.append(directory)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if (real := os.path.realpath(directory)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        for name in files:
            if is_image_name(name):
                yield os.fsencode(os.path.relpath(Path(directory, name), root))


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
