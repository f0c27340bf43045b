"""One memory-mapped file of decoded images.

It is a header of `_HEADER` bytes (`_MAGIC`, ending in the format's version, and `Header` as JSON), the pixels of all
images one after the other, and a tail: a row (offset, height, width) an image, zero for an unreadable one, and the
reasons of those as JSON.
"""

import errno
import json
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnext.data.sources import digest
from convnext.errors import UserError
from convnext.storage.files import writing

_MAGIC = b"convnext images\x02"
_HEADER = 4096  # bytes


class CacheError(UserError):
    """A cache that cannot be made, or is gone."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    key: str  # of the images and their contents
    channels: int
    images: int  # their number, unreadable ones included
    tail: int  # where pixels end
    size: int  # of the whole file in bytes
    digest: str  # of the tail


class Chunk(NamedTuple):
    """Decoded images."""

    pixels: NDArray[np.uint8]  # (bytes,), of all that could be read, one image after the other
    images: list[tuple[int, int] | str]  # height and width of each, or why it could not be read


class CacheFile:
    """A whole file, mapped from an open descriptor; all processes that map it share its memory. Its `reasons` say, by
    index, why an image could not be read."""

    def __init__(self, path: Path, header: Header, descriptor: int) -> None:
        self.path, self.header = path, header
        try:
            # Copied on write: the views count as writeable, which saves a copy of each image, and the file is safe.
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            # Larger than all memory: Linux grants no writeable map of that. Each image will be copied when it is used.
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self._rows: NDArray[np.int64] = np.ndarray((header.images, 3), "<i8", self._map, header.tail)
        reasons = json.loads(self._map[header.tail + self._rows.nbytes :])
        self.reasons: dict[int, str] = {int(index): reason for index, reason in reasons.items()}

    @classmethod
    def open(cls, path: Path, key: str) -> "CacheFile | None":
        """The file at ``path`` if it is whole and made for ``key``, else None."""
        with suppress(FileNotFoundError), FileIO(path) as file:
            if (header := _read_header(file.fileno())) is not None and header.key == key:
                return cls(path, header, file.fileno())
        return None

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """A view of an image: ``(H, W)``, or ``(H, W, 3)``."""
        offset, height, width = self._rows[index].tolist()
        shape = (height, width) if self.header.channels == 1 else (height, width, self.header.channels)
        view: NDArray[np.uint8] = np.ndarray(shape, np.uint8, self._map, offset)
        return view

    def __reduce__(self) -> tuple[object, ...]:
        return _reopened, (self.path, self.header.key)


def _reopened(path: Path, key: str) -> CacheFile:
    """The file in another process."""
    if (file := CacheFile.open(path, key)) is None:
        raise CacheError(f"{path}, a cache of images, is gone or was replaced while it was in use: start again")
    return file


def _read_header(descriptor: int) -> Header | None:
    """The header of a file that is whole; else None."""
    head, size = os.pread(descriptor, _HEADER, 0), os.fstat(descriptor).st_size
    if not head.startswith(_MAGIC):
        return None
    try:
        values = json.loads(head.removeprefix(_MAGIC))
        header = Header(**{field.name: values[field.name] for field in fields(Header)})
        tail = os.pread(descriptor, size - header.tail, header.tail)
    except (ValueError, TypeError, KeyError, OSError):  # damaged: no JSON, other names, or an offset outside the file
        return None
    return header if header.size == size and header.digest == digest(tail) else None


def write(path: Path, key: str, channels: int, images: int, chunks: Iterable[Chunk]) -> None:
    """Write a file of all chunks, in order, which is visible once it is on the disk.

    Raises:
        OSError: no room, or a folder that cannot be written; nothing is left.
    """
    rows = np.zeros((images, 3), "<i8")
    reasons: dict[int, str] = {}
    with writing(path) as unfinished, unfinished.open("wb") as file:
        file.seek(_HEADER)
        end, index = _HEADER, 0
        for chunk in chunks:
            file.write(chunk.pixels.data)
            for image in chunk.images:
                if isinstance(image, str):
                    reasons[index] = image
                else:
                    rows[index] = end, *image
                    end += image[0] * image[1] * channels
                index += 1
        tail = rows.tobytes() + json.dumps(reasons).encode()
        file.write(tail)
        header = Header(key, channels, images, end, end + len(tail), digest(tail))
        file.seek(0)
        file.write((_MAGIC + json.dumps(asdict(header)).encode()).ljust(_HEADER))
