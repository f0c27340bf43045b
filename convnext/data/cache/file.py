"""One memory-mapped file of decoded images: its format, its place, and its locks.

It is a header of `_HEADER` bytes (`_MAGIC`, ending in the format's version, and `Header` as JSON), the pixels of all
images one after the other, and a tail: a row (offset, height, width) an image, zero for an unreadable one, and the
reasons of those as JSON.

It is written as ``.name.part`` under an exclusive lock and renamed once it is whole, so what a killed process leaves is
overwritten or removed by the next that makes a file there. One on disk stays. One in memory is removed by the last of
its users, each of which holds a shared lock on it; one whose users were killed is used or removed by a later run.
"""

import errno
import fcntl
import json
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnext.errors import UserError
from convnext.storage.downloads import cache_folder
from convnext.storage.files import is_at, sync

_MAGIC = b"convnext images\x01"
_HEADER = 4096  # bytes


class CacheError(UserError):
    """A cache that cannot be made, or is gone."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        key: of the images and their contents.
        side: shorter side in pixels to which larger images were shrunk.
        channels: 3 or 1.
        images: their number, unreadable ones included.
        unreadable: the number of those.
        tail: where pixels end.
        size: of the whole file in bytes.
        digest: of the tail.
    """

    key: str
    side: int
    channels: int
    images: int
    unreadable: int
    tail: int
    size: int
    digest: str


class Chunk(NamedTuple):
    """Decoded images.

    Attributes:
        pixels: of all that could be read, one image after the other: ``(bytes,)`` uint8.
        images: height and width of each, or why it could not be read.
    """

    pixels: NDArray[np.uint8]
    images: list[tuple[int, int] | str]


class CacheFile:
    """A whole file, mapped; all processes that map it share its memory.

    Args:
        path: where it is.
        header: its own.
        descriptor: it, open; not needed afterwards.
        hold: whether this process is one of its users, the last of which removes it; the lock is on ``descriptor``.

    Attributes:
        reasons: by place, why an image could not be read.
        close: be no user any more; what is mapped stays. The end of the process does so too.
    """

    def __init__(self, path: Path, header: Header, descriptor: int, hold: bool) -> None:
        self.path, self.header = path, header
        try:
            # Copied on write: the views count as writeable, which saves a copy of each image, and the file is safe.
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            # Larger than all memory: Linux grants no writeable map of that. Each image will be copied when it is used.
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self._index: NDArray[np.int64] = np.ndarray((header.images, 3), "<i8", self._map, header.tail)
        reasons = json.loads(self._map[header.tail + self._index.nbytes :])
        self.reasons: dict[int, str] = {int(place): reason for place, reason in reasons.items()}
        self.close: Callable[[], object] = lambda: None
        if hold:  # a duplicated descriptor has the same lock
            self.close = weakref.finalize(self, _leave, os.dup(descriptor), path, os.getpid())

    def pixels(self, place: int) -> NDArray[np.uint8]:
        """A view of the image at ``place``: ``(H, W)``, or ``(H, W, 3)``."""
        offset, height, width = self._index[place].tolist()
        shape = (height, width) if self.header.channels == 1 else (height, width, self.header.channels)
        view: NDArray[np.uint8] = np.ndarray(shape, np.uint8, self._map, offset)
        return view

    def __reduce__(self) -> tuple[object, ...]:
        return _reopened, (self.path, self.header.key)


def _reopened(path: Path, key: str) -> CacheFile:
    """The file in another process, which is not one of those that it waits for."""
    if (file := _opened(path, key, hold=False)) is None:
        raise CacheError(f"{path}, a cache of images, is gone or was replaced while it was in use: start again")
    return file


def _opened(path: Path, key: str, hold: bool) -> CacheFile | None:
    """The file at ``path`` if it is whole and made for ``key``, else None."""
    with suppress(FileNotFoundError), FileIO(path) as file:
        if hold:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not is_at(file.fileno(), path):  # its last user removed it while we waited
                return _opened(path, key, hold)
            if os.fstat(file.fileno()).st_uid != os.geteuid():  # anybody may write to a folder in memory
                return None
        if (header := _read_header(file.fileno())) is not None and header.key == key:
            return CacheFile(path, header, file.fileno(), hold)
    return None


def _read_header(descriptor: int) -> Header | None:
    """The header of a file that is whole; else None."""
    head, size = os.pread(descriptor, _HEADER, 0), os.fstat(descriptor).st_size
    if not head.startswith(_MAGIC):
        return None
    try:
        header = Header(**json.loads(head.removeprefix(_MAGIC)))
        tail = os.pread(descriptor, size - header.tail, header.tail)
    except (ValueError, TypeError, OSError):  # damaged: no JSON, other names, or no place in the file
        return None
    return header if header.size == size and header.digest == digest(tail) else None


def _leave(descriptor: int, path: Path, owner: int) -> None:
    """Give up the shared lock; the last user removes the file."""
    if os.getpid() != owner:
        return  # forked: the lock is the parent's
    try:
        if _try_lock(descriptor) and is_at(descriptor, path):
            path.unlink()
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: the map has a descriptor of its own
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock the open file for this process alone, unless another has a lock on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def digest(data: bytes) -> str:
    """16 bytes of BLAKE2b in hexadecimal."""
    return blake2b(data, digest_size=16).hexdigest()


class Store:
    """The place of one file.

    Args:
        where: "ram" for one that lasts as long as a process uses it, "disk" for one in the cache folder, which stays.
        name: of the images.
        key: of the images and their contents: a file of the same name and another key is out of date.
        side: shorter side in pixels to which larger images are shrunk.
    """

    def __init__(self, where: Literal["ram", "disk"], name: str, key: str, side: int) -> None:
        self.key, self.side, self._in_ram = key, side, where == "ram"
        if self._in_ram:
            memory = Path("/dev/shm")
            self._folder = memory if memory.is_dir() else Path(tempfile.gettempdir())
            prefix = f"convnext-{os.geteuid()}-"  # the folder is every user's
        else:
            self._folder, prefix = cache_folder() / "images", ""
        self.path = self._folder / f"{prefix}{name}.bin"
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._removable = [f".{prefix}*.bin.part", *([f"{prefix}*.bin"] if self._in_ram else [])]

    def open(self) -> CacheFile | None:
        """The file, if it is there, whole and up to date; where it is in memory, this process becomes its user."""
        return _opened(self.path, self.key, hold=self._in_ram)

    @contextmanager
    def unfinished(self, waiting: Callable[[], None]) -> Iterator[int | None]:
        """Lock the unfinished file, and yield its descriptor; None where another process was at it: look again.

        It is removed at the end unless `write` has finished it.

        Args:
            waiting: called before waiting for that process.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        ours = False
        try:
            if ours := _try_lock(descriptor):
                made = not is_at(descriptor, self._part) or _opened(self.path, self.key, hold=False) is not None
                yield None if made else descriptor
            else:
                waiting()
                # Not exclusive: a file in memory is under a shared lock as soon as it is whole, as long as it is used.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                yield None
        finally:
            # Under another process's lock, or moved to its place, it is not ours to remove.
            if ours and is_at(descriptor, self._part):
                self._part.unlink()
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def write(self, descriptor: int, chunks: Iterable[Chunk], channels: int, images: int) -> Header:
        """Write the unfinished file, wait until it is on the disk, and make it visible."""
        index = np.zeros((images, 3), "<i8")
        reasons: dict[int, str] = {}
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.truncate(0)
            file.seek(_HEADER)
            end, place = _HEADER, 0
            for chunk in chunks:
                self.check_room(chunk.pixels.nbytes, written=end)
                file.write(chunk.pixels.data)
                for image in chunk.images:
                    if isinstance(image, str):
                        reasons[place] = image
                    else:
                        index[place] = end, *image
                        end += image[0] * image[1] * channels
                    place += 1
            tail = index.tobytes() + json.dumps(reasons).encode()
            file.write(tail)
            size = end + len(tail)
            header = Header(self.key, self.side, channels, images, len(reasons), end, size, digest(tail))
            file.seek(0)
            file.write((_MAGIC + json.dumps(asdict(header)).encode()).ljust(_HEADER))
            file.flush()
            os.fsync(descriptor)
        self._part.replace(self.path)
        sync(self._folder)
        return header

    def sweep(self) -> None:
        """Remove what killed processes left of other files; what is in use is locked."""
        for path in (path for pattern in self._removable for path in self._folder.glob(pattern)):
            if path in (self.path, self._part):
                continue
            with suppress(OSError), FileIO(path) as file:  # already gone
                if _try_lock(file.fileno()) and is_at(file.fileno(), path):
                    path.unlink()

    def check_room(self, needed: int, written: int = 0) -> None:
        """Refuse what there is no room for.

        Args:
            needed: bytes.
            written: bytes of this file so far.

        Raises:
            CacheError: there is less room.
        """
        free, memory = shutil.disk_usage(self._folder).free, Path("/proc/meminfo")
        if self._in_ram and memory.is_file():
            values = dict(line.split(":") for line in memory.read_text().splitlines())
            free = min(free, int(values["MemAvailable"].split()[0]) * 1024)
        if needed > free:
            take = f"take {'more than' if written else 'about'} {amount(written + needed)}"
            raise self._refusal(f"the images {take} and there is room for {amount(written + free)}")

    def trouble(self, error: OSError) -> CacheError:
        """What to say of a disk's error."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return self._refusal((error.strerror or "no room").lower())
        advice = "use --data.cache disk" if self._in_ram else "set CONVNEXT_CACHE to a folder that can be written"
        problem = error.strerror or error
        return CacheError(f"cannot cache images in {self._folder}: {problem}; {advice}, or use --data.cache none")

    def _refusal(self, problem: str) -> CacheError:
        other = "use --data.cache disk" if self._in_ram else "set CONVNEXT_CACHE to a folder on another disk"
        return CacheError(
            f"cannot cache images in {self._folder}: {problem}; lower --data.cache-image-size (now {self.side}), {other}, or "
            f"use --data.cache none"
        )


def amount(size: int) -> str:
    """Bytes in words."""
    from rich.filesize import decimal

    return decimal(size)
