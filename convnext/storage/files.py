"""Files that are either complete or not there, and folders that one process at a time may change."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from convnext.errors import UserError

_locks: set[IO[str]] = set()  # held by this process


def _leave_locks() -> None:
    """A child of this process that outlives it must not keep its locks."""
    for file in _locks:
        file.close()
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a path to write beside ``path``; rename it to ``path`` once its contents are on the disk."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write does not say where
            error.filename = str(path)
        raise


def sweep(folder: Path) -> None:
    """Remove what processes that were killed while `writing` left in ``folder``, which is `locked` by this one."""
    import psutil

    for path in folder.glob(".*.tmp"):
        # This process has begun nothing yet, and in a container may have the number of the one before.
        owner = re.search(r"\.(\d+)\.tmp$", path.name)
        if owner and (int(owner[1]) == os.getpid() or not psutil.pid_exists(int(owner[1]))):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with writing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def digest(path: Path, kind: str = "sha256", report: Callable[[int, int | None], None] | None = None) -> str:
    """The file's digest in hexadecimal; ``kind`` is a name that `hashlib` knows.

    ``report`` hears of the bytes read so far, and in all.
    """
    found = hashlib.new(kind, usedforsecurity=kind != "md5")
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
            done += len(block)
            if report is not None:
                report(done, size)
    return found.hexdigest()


def is_at(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still names the open file, and not another or none."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder`` while the context lasts; the kernel lets go when the process ends.

    Raises:
        UserError: another process has it.
    """
    import fcntl

    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder} is in use by process {file.read().strip() or '(unknown)'}: let it end") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _locks.add(file)
        try:
            yield
        finally:
            _locks.discard(file)


def in_use(folder: Path) -> bool:
    """Whether a process has `locked` the folder, whose files are left alone."""
    import fcntl

    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
