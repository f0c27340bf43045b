"""Archives of data sets, unpacked whole or not at all.

While a folder ``target`` is made from an archive, its parent holds ``.target.unfinished``, and ``.target.lock``, on
which other processes that want the same folder wait. The name ``target`` appears once everything is on the disk. What
a process that was killed left is cleared by the next one, which starts over (`unpack_classes` goes on instead).

Plain files only are taken from an archive, and only below the folder: data sets need no links and no devices. That an
archive is whole is what `verify` tells: a tar that ends early, between two files, looks like a shorter one.
"""

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeAlias

from convnext.errors import DataError
from convnext.storage.downloads import progress_bar
from convnext.storage.files import digest, sync, writing
from convnext.storage.locks import alone

# From a member's name to where it goes, below the folder that is made; None leaves it out.
Destination: TypeAlias = Callable[[str], str | None]

_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


class DamagedArchiveError(DataError):
    """An archive that is broken, or another than it should be."""


class _Member(NamedTuple):
    name: str
    size: int
    plain: bool  # neither a link nor a device
    open: Callable[[], IO[bytes]]


def verify(archive: Path, md5: str, progress: bool = True) -> None:
    """Compare a file with its published checksum.

    Raises:
        DamagedArchiveError: it is another file, or an incomplete one.
    """
    with progress_bar(f"checking {archive.name}", progress) as report:
        actual = digest(archive, "md5", report)
    if actual != md5:
        raise DamagedArchiveError(
            f"{archive} has the MD5 {actual}, not {md5}: it is damaged, incomplete or another file; replace it"
        )


def inside(folder: str) -> Destination:
    """The `Destination` that takes what lies below one folder of the archive."""

    def destination(name: str) -> str | None:
        path = PurePosixPath(name)
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else None

    return destination


def unpack(archive: Path, target: Path, destination: Destination, within: str = "", progress: bool = True) -> None:
    """Make the folder ``target`` of an archive's files; nothing happens where it is there.

    Args:
        archive: a zip, or a tar with any compression.
        target: the folder to make.
        destination: which members are taken, and where they go.
        within: name of an archive in the archive that is meant instead; empty for none.
        progress: whether to show a bar, on a terminal.

    Raises:
        DamagedArchiveError: it cannot be read, or has none of the files.
        DataError: it has links or paths that lead out of the folder, or the disk is full or cannot be written; the
            folder is not there then.
    """

    def fill(folder: Path) -> None:
        needed = archive.stat().st_size  # of a tar at least: compressed pictures hardly shrink
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                needed = sum(info.file_size for info in zipped.infolist())
        _check_room(archive, folder, needed)
        with _reading(archive, progress) as (file, report), ExitStack() as stack:
            members = _members(file, archive.name)
            if within:
                inner = next((member for member in members if member.name == within), None)
                if inner is None:
                    raise DamagedArchiveError(f"{archive} has no {within}: it is another archive")
                members = _members(stack.enter_context(inner.open()), within)
            if not _write(members, folder, destination, report):
                raise DamagedArchiveError(f"{archive} has none of the files of {target.name}: it is another archive")

    _make(archive, target, fill)


def unpack_classes(archive: Path, target: Path, progress: bool = True) -> None:
    """Make the folder ``target`` of a tar of tars, each the folder of one class.

    After an interruption the next call goes on behind the last whole class.

    Raises:
        DamagedArchiveError: it cannot be read, or has no classes.
        DataError: see `unpack`.
    """

    def fill(folder: Path) -> None:
        def finished_folder(member: _Member) -> Path:
            return folder / PurePosixPath(member.name).stem

        with archive.open("rb") as tar:
            members = _members(tar, archive.name)
            _check_room(archive, folder, sum(item.size for item in members if not finished_folder(item).is_dir()))
        with _reading(archive, progress) as (file, report):
            for member in _members(file, archive.name):
                finished = finished_folder(member)
                if finished.is_dir():
                    continue
                unfinished = finished.with_name(f".{finished.name}")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                with member.open() as inner:
                    _write(_members(inner, member.name), unfinished, lambda name: name, report)
                os.sync()  # a class that is there is not looked at again
                unfinished.rename(finished)
        if not any(path.is_dir() for path in folder.iterdir()):
            raise DamagedArchiveError(f"{archive} has no classes: it is another archive")

    _make(archive, target, fill, resumable=True)


def gunzip(archive: Path, target: Path) -> None:
    """Make the file ``target`` of a ``.gz`` file.

    Raises:
        DamagedArchiveError: it cannot be read.
        DataError: the disk is full or cannot be written; the file is not there then.
    """
    with (
        _explained(archive, target),
        gzip.open(archive) as compressed,
        writing(target) as unfinished,
        unfinished.open("wb") as file,
    ):
        shutil.copyfileobj(compressed, file, 1 << 20)


@contextmanager
def _explained(archive: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGES as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise DamagedArchiveError(f"{archive} is damaged ({reason}): replace it") from error
    except OSError as error:
        raise DataError(
            f"cannot unpack {archive} into {target.parent}: {error.strerror or error}; free space, or choose a folder "
            f"that can be written"
        ) from error


def _check_room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"cannot unpack {archive}: {needed / 1e6:,.0f} MB are needed and {folder.parent} has room for "
            f"{free / 1e6:,.0f} MB; free space, or choose a folder on another disk"
        )


def _make(archive: Path, target: Path, fill: Callable[[Path], None], resumable: bool = False) -> None:
    unfinished = target.with_name(f".{target.name}.unfinished")
    with _explained(archive, target), alone(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return
        if not resumable and unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(exist_ok=True)
        try:
            fill(unfinished)
            os.sync()  # one call for what may be 100,000 files
            unfinished.rename(target)
            sync(target.parent)
        except BaseException as error:
            if not resumable or isinstance(error, (DamagedArchiveError, *_DAMAGES)):
                shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):
                unfinished.rmdir()  # where there is nothing to go on from
            raise


@contextmanager
def _reading(archive: Path, progress: bool) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """The open archive, and what to call now and then, for a bar of how much of it has been read."""
    size = archive.stat().st_size
    with archive.open("rb") as file, progress_bar(f"unpacking {archive.name}", progress) as report:
        yield file, lambda: report(file.tell(), size)


def _members(file: IO[bytes], name: str) -> Iterator[_Member]:
    if name.endswith(".zip"):
        with zipfile.ZipFile(file) as zipped:
            for entry in zipped.infolist():
                plain = not stat.S_ISLNK(entry.external_attr >> 16)
                if not entry.is_dir():
                    yield _Member(entry.filename, entry.file_size, plain, partial(zipped.open, entry))
        return
    with tarfile.open(fileobj=file) as tar:
        for info in tar:
            if not info.isdir():
                yield _Member(info.name, info.size, info.isfile(), partial(_tar_file, tar, info))


def _tar_file(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None  # only directories have none
    return file


def _write(members: Iterable[_Member], folder: Path, destination: Destination, report: Callable[[], None]) -> int:
    """Write the members that have a destination; returns their number."""
    written = 0
    for member in members:
        name = destination(member.name)
        if name is None:
            continue
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not member.plain:
            raise DamagedArchiveError(
                f"the archive has {member.name!r}, a link or a path out of its folder: do not use it"
            )
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            if file.tell() != member.size:
                raise EOFError(f"{member.name} is incomplete")
        written += 1
        report()
    return written
