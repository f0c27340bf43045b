"""Tar files on this disk or on a web server: where each sample lies in them, and local copies of remote ones.

A folder holds, for every shard,

- ``<key>/index.json``: its samples, their offsets and labels; made once, in one pass over the shard;
- ``<key>/<name>.tar``: a shard from the web, while there is room for it.

The key is a digest of the shard's location, size and version, so that a shard that changes is indexed and fetched anew.
"""

import json
import os
import shutil
import socket
import ssl
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from convnext.data.files import is_image_name
from convnext.data.progress import tracked
from convnext.data.sources import digest
from convnext.errors import DataError
from convnext.storage.downloads import download, remove_partial
from convnext.storage.files import write_text

# A run shuffles eight shards together (`convnext.data.loading.loader`), and its workers run ahead into the next eight.
SHARDS_AT_ONCE = 16
_FORMAT = "1"  # of the index
_ROOM_DIVISOR = 4  # shards may take a quarter of the disk's free space
_RETRIES = 4
_GONE = (403, 404, 410)  # file stores answer 403 where they do not want to say 404
_LABEL_SIZE = 1 << 20  # bytes
_LARGEST_LABEL = 1 << 31
_LONGEST_NAME = 200  # characters
_BLOCK = tarfile.BLOCKSIZE
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Shard:
    """A tar file at an absolute path or a URL, a digest of that with its size and version, and the size in bytes."""

    location: str
    key: str
    size: int

    @property
    def remote(self) -> bool:
        """Whether it is on a web server."""
        return is_url(self.location)

    @property
    def name(self) -> str:
        """Its file name."""
        return PurePosixPath(urlsplit(self.location).path if self.remote else self.location).name


@dataclass(frozen=True)
class Index:
    """A shard's samples, in the order of the file: what their members' names have in common, where their images start
    and how large they are, in bytes, and their class numbers or class names."""

    keys: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int | str]


def is_url(location: str) -> bool:
    """Whether it is on a web server."""
    return urlsplit(location).scheme in ("http", "https")


@dataclass(frozen=True)
class ShardFolder:
    """Indices of shards, and shards from the web: those read least recently make room for the next.

    Any number of processes may use it. Each makes room for the shard that it fetches; of those that are on their way at
    the same moment, all but one may come on top of the room.
    """

    path: Path
    room: int | None = None  # bytes; None for a quarter of what the disk has free, its shards counted as free
    pause: float = 1.0  # seconds before a failed request is repeated; each next pause is twice as long
    connections: int = 4  # requests at a time, while shards are looked for and indexed

    def find(self, locations: Sequence[str]) -> list[Shard]:
        """The shards at ``locations``.

        Raises:
            DataError: one is missing, its server cannot be reached, or they need more room than there is.
        """
        shards_or_none = self._in_threads(self.look, locations, "Looking for shards")
        if None in shards_or_none:
            raise DataError(f"there is no shard {locations[shards_or_none.index(None)]}, or it may not be read")
        shards = [shard for shard in shards_or_none if shard is not None]
        largest = sorted((shard.size for shard in shards if shard.remote), reverse=True)[:SHARDS_AT_ONCE]
        if (needed := sum(largest)) > (room := self._room_and_files()[0]):
            raise DataError(
                f"{len(largest)} shards at a time are {needed / 1e9:.1f} GB, and {self.path} may have {room / 1e9:.1f} "
                f"GB, a quarter of what is free: free space, or set CONVNEXT_CACHE to a folder on another disk"
            )
        return shards

    def look(self, location: str) -> Shard | None:
        """The shard (or other file) at ``location``; None where nothing is there.

        Raises:
            DataError: the server cannot be reached, or does not say how long the file is.
        """
        state: tuple[int, str] | None = None
        if is_url(location):
            state = _describe(location, self.pause)
        else:
            with suppress(OSError):
                status = Path(location).stat()
                state = status.st_size, str(status.st_mtime_ns)
        if state is None:
            return None
        size, version = state
        identity = "\0".join((_FORMAT, location, str(size), version)).encode("utf-8", "surrogateescape")
        return Shard(location, digest(identity), size)

    def index_all(self, shards: Sequence[Shard]) -> list[Index]:
        """The indices of the shards, made where they are not there yet; an interruption loses none that is made.

        Raises:
            DataError: a shard that is damaged or has an image without a label.
            DownloadError: one that cannot be fetched.
        """
        return self._in_threads(self.index, shards, "Indexing shards")

    def index(self, shard: Shard) -> Index:
        """The index of one shard; see `index_all`."""
        path = self.path / shard.key / "index.json"
        with suppress(FileNotFoundError, ValueError):  # none yet, or one that the disk damaged
            return Index(**json.loads(path.read_text("utf-8")))
        try:
            with self.open(shard) as file:
                index = scan(file, shard.location)
        except OSError as error:
            raise DataError(f"{shard.location} cannot be read: {error.strerror}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(index)))
        return index

    def open(self, shard: Shard) -> BinaryIO:
        """The shard's file, fetched where it is not here.

        Raises:
            OSError: a local shard that cannot be read.
            DownloadError: one that cannot be fetched.
            DataError: one that has changed on its server.
        """
        if not shard.remote:
            return Path(shard.location).open("rb")
        path = self.path / shard.key / shard.name
        while True:
            with suppress(FileNotFoundError):
                file = path.open("rb")
                with suppress(PermissionError):  # another user's
                    os.utime(file.fileno(), ns=2 * (time.time_ns(),))  # the kernel's own clock is coarse
                return file
            self._make_room(shard)
            download(shard.location, self.path / shard.key, progress=False, retries=_RETRIES, pause=self.pause)
            with suppress(FileNotFoundError):  # another process needed the room already
                if path.stat().st_size != shard.size:
                    path.unlink()
                    raise DataError(f"{shard.location} has changed on its server: start again, to index it anew")

    def _make_room(self, shard: Shard) -> None:
        room, files = self._room_and_files()
        others = sorted(file for file in files if file[1].parent.name != shard.key)  # the download of this one goes on
        total = sum(length for _, _, length in others) + shard.size
        for _, path, length in others:
            if total <= room:
                return
            if path.suffix == ".part" and not remove_partial(path):
                continue
            path.unlink(missing_ok=True)
            total -= length

    def _room_and_files(self) -> tuple[int, list[tuple[int, Path, int]]]:
        """Bytes for shards; and those that are here, whole or partial: when last read, the path, and the size."""
        self.path.mkdir(parents=True, exist_ok=True)
        files = []
        for path in chain(self.path.glob("*/*.tar"), self.path.glob("*/.*.tar.part")):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, path, status.st_size))
        if self.room is not None:
            return self.room, files
        free = shutil.disk_usage(self.path).free + sum(length for _, _, length in files)
        return free // _ROOM_DIVISOR, files

    def _in_threads(self, function: Callable[[T], R], items: Iterable[T], title: str) -> list[R]:
        """What the function gives for each item, in order, with a bar on a terminal; the first error ends it."""
        pool = ThreadPoolExecutor(self.connections)
        try:
            futures = [pool.submit(function, item) for item in items]
            return [future.result() for future in tracked(futures, len(futures), title)]
        finally:
            pool.shutdown(cancel_futures=True)


def scan(file: BinaryIO, location: str) -> Index:
    """Read the headers of a tar file, and its labels.

    A sample is the files whose paths are the same up to the first dot of their names: an image (``.jpg``, ``.png``, …)
    and its label in ``.cls`` (a number or a name), ``.json`` (under ``"label"``) or ``.txt``, the first that is there.
    Other files are left alone, and so are samples without an image.

    Raises:
        DataError: no tar file, a damaged or truncated one, one without images, or an image without a label.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if stem and member.isreg() and not member.issparse():
                    samples.setdefault(f"{folder}/{stem}", {})[ending.lower()] = member.offset_data, member.size
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DataError(f"{location} is no tar file that can be read: {error}") from error
    # What is no header ends the loop above too: only the mark of the end, a block of zeros, tells that all was read.
    if os.pread(file.fileno(), _BLOCK, end) != bytes(_BLOCK):
        raise DataError(f"{location} is damaged or truncated at byte {end:,}: fetch or write it again")
    index = Index([], [], [], [])
    for path, members in samples.items():
        image = next((ending for ending in members if "." not in ending and is_image_name(f"x.{ending}")), None)
        if image is None:
            continue
        key = path.removeprefix("/").encode("utf-8", "replace").decode()
        index.keys.append(key)
        index.offsets.append(members[image][0])
        index.sizes.append(members[image][1])
        index.labels.append(_label(file, members, f"{location}: sample {key}"))
    if not index.keys:
        raise DataError(f"{location} has no images: expected samples such as 000.jpg with 000.cls")
    return index


def _label(file: BinaryIO, members: dict[str, tuple[int, int]], where: str) -> int | str:
    for ending in ("cls", "json", "txt"):
        if ending not in members:
            continue
        offset, size = members[ending]
        if size > _LABEL_SIZE:
            raise DataError(f"{where}: a .{ending} of {size:,} bytes is no label")
        try:
            value: object = os.pread(file.fileno(), size, offset).decode("utf-8")
            if ending == "json":
                content = json.loads(str(value))
                value = content.get("label") if isinstance(content, dict) else None
            if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
                value = int(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: unreadable .{ending}: {error}") from error
        if isinstance(value, str) and (name := " ".join(value.split())):
            if len(name) > _LONGEST_NAME:
                raise DataError(f"{where}: {name[:30]!r}… is too long for the name of a class")
            return name
        if isinstance(value, int) and not isinstance(value, bool):
            if abs(value) >= _LARGEST_LABEL:
                raise DataError(f"{where}: {value} is no class number")
            return value
    raise DataError(f'{where} has no label: expected a number or a name in .cls or .txt, or {{"label": …}} in .json')


def _describe(url: str, pause: float) -> tuple[int, str] | None:
    """Size and version of a file on a server; None where there is none.

    Raises:
        DataError: no answer, or none that says how long the file is.
    """
    # A first byte is asked for: addresses that are signed for GET refuse HEAD.
    request = Request(url, headers={"User-Agent": "convnext", "Accept-Encoding": "identity", "Range": "bytes=0-0"})
    problem = ""
    for attempt in range(_RETRIES + 1):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            with urlopen(request, timeout=30) as answer:
                headers, partial = answer.headers, answer.status == 206
            length = (
                headers.get("Content-Range", "").rpartition("/")[2] if partial else headers.get("Content-Length", "")
            )
            if not length.isdecimal():
                raise DataError(f"the server of {url} does not say how long the file is: copy it to this machine")
            return int(length), headers.get("ETag") or headers.get("Last-Modified") or ""
        except HTTPError as error:
            error.close()
            if error.code in _GONE:
                return None
            problem = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                break
        except (HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            problem = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
            if isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError):  # waiting mends neither
                break
    raise DataError(f"cannot read {url}: {problem}; check the address and the network")
