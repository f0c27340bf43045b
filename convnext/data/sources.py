"""Labelled images by index, in arrays or in files, and their seeded, stratified division."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import Picture, Raw, UnreadableImageError
from convnext.errors import DataError

_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)


class ImageSource(ABC):
    """``N`` labelled images, by index.

    Attributes:
        targets: ``(N,)`` class indices.
        channels: 3 or 1: what `load` returns.
        in_memory: whether pixels lie decoded in this process's memory, so that workers would gain nothing.
        groups: ``(N,)`` numbers of the files that images lie in together, where reading them in turn is much faster
            than reading them in any order; else None.
    """

    targets: NDArray[np.int64]
    channels: int
    in_memory: ClassVar[bool] = False
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def raw(self, index: int) -> Raw:
        """The image as it is kept: an encoded file's bytes, or ``(H, W)`` or ``(H, W, C)`` uint8 pixels.

        Raises:
            UnreadableImageError: it cannot be read; the message names it.
        """

    @abstractmethod
    def image_name(self, index: int) -> str:
        """What to call the image in a report: its path, or its number."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of which images these are, with their labels."""

    @abstractmethod
    def subset(self, indices: NDArray[np.int64]) -> "ImageSource":
        """The images at ``indices``, in that order."""

    def picture(self, index: int) -> Picture:
        """The image, not decoded yet."""
        return Picture(self.raw(index), self.channels, self.image_name(index))

    def load(self, index: int) -> Image.Image:
        """The image, mode ``RGB`` or ``L``.

        Raises:
            UnreadableImageError: a file that cannot be decoded; the message names it.
        """
        return self.picture(index).decode()


@dataclass(frozen=True)
class ArraySource(ImageSource):
    """Images in one array.

    Args:
        images: ``(N, H, W)`` or ``(N, H, W, C)`` uint8 pixels.
        targets: ``(N,)`` class indices.
        channels: 3 or 1.
    """

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
        digest = blake2b(np.ascontiguousarray(self.images).tobytes(), digest_size=16)
        digest.update(self.targets.tobytes())
        return digest.hexdigest()

    def subset(self, indices: NDArray[np.int64]) -> "ArraySource":
        """The images at ``indices``, in that order."""
        return replace(self, images=self.images[indices], targets=self.targets[indices])


@dataclass(frozen=True)
class FileSource(ImageSource):
    """Image files below a folder.

    Args:
        paths: ``(N,)`` paths relative to ``root`` as bytes: one array, so that worker processes share its memory.
        targets: ``(N,)`` class indices.
        channels: 3 or 1.
        root: the folder.
    """

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
        digest = blake2b(b"\0".join(self.paths.tolist()), digest_size=16)
        digest.update(self.targets.tobytes())
        return digest.hexdigest()

    def subset(self, indices: NDArray[np.int64]) -> "FileSource":
        """The images at ``indices``, in that order."""
        return replace(self, paths=self.paths[indices], targets=self.targets[indices])


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
        if not _is_text(name):
            raise DataError(f"{folder} has a class folder whose name is not readable text: {name!r}; rename it")
    return names


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def scan_folder(folder: Path, classes: list[str]) -> FileSource:
    """All images below ``folder/<class>/``, sorted by path.

    Raises:
        DataError: a class folder without images, or one that is not among ``classes``.
    """
    unknown = [name for name in class_folders(folder) if name not in classes]
    if unknown:
        raise DataError(f"{folder} has classes that the training images lack: {', '.join(unknown[:5])}")
    paths: list[bytes] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        found = sorted(_image_files(folder / name, folder))
        paths += found
        targets += [target] * len(found)
    if not paths:
        raise DataError(f"{folder} has no images in its class folders: expected {folder}/<class>/*.jpg (or .png, …)")
    # Colour always: one grey picture among the files says nothing about the others.
    return FileSource(np.array(paths), np.array(targets, np.int64), channels=3, root=folder)


def _image_files(folder: Path, root: Path) -> Iterator[bytes]:
    seen = {os.path.realpath(parent) for parent in folder.parents}  # links may lead back
    for directory, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if (real := os.path.realpath(directory)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        for name in files:
            if is_image_name(name):
                yield os.fsencode(os.path.relpath(Path(directory, name), root))


def stratified_split(source: ImageSource, fraction: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Hold out a share of every class.

    Args:
        source: what to divide.
        fraction: share to hold out, between 0 and 1.
        seed: the same seed gives the same division.

    Returns:
        The images that stay and those held out, each in the source's order.

    Raises:
        DataError: a class has too few images to stand on both sides.
    """
    from sklearn.model_selection import train_test_split

    try:
        kept, held_out = train_test_split(
            np.arange(len(source)), test_size=fraction, random_state=seed % 2**32, stratify=source.targets
        )
    except ValueError:
        smallest = np.bincount(source.targets).min()
        raise DataError(
            f"cannot hold out {fraction:g} of {len(source)} images with every class on both sides (the smallest class "
            f"has {smallest}): add images, provide val/ and test/ folders, or change data.val_fraction and "
            f"data.test_fraction"
        ) from None
    return source.subset(np.sort(kept)), source.subset(np.sort(held_out))


def statistics(source: ImageSource, limit: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and standard deviations of the pixels, on a scale of 0 to 1.

    Measured on at most ``limit`` images spread evenly over the source, each at no more than 256 px; unreadable
    images are left out.
    """
    total, squares, count = np.zeros(source.channels), np.zeros(source.channels), 0
    for index in np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int):
        try:
            image = source.load(int(index))
        except DataError:
            continue
        image.thumbnail((256, 256))
        pixels = np.asarray(image, np.float64).reshape(-1, source.channels) / 255
        total += pixels.sum(0)
        squares += (pixels**2).sum(0)
        count += len(pixels)
    if not count:
        raise DataError(f"none of the first images can be read, such as {source.image_name(0)}")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
