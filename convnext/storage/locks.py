"""Locks between processes. The kernel holds them, so that one ends with its process, however that ends."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.errors import UserError, reason

if TYPE_CHECKING:
    from filelock import BaseFileLock

_PATIENCE = 0.2  # seconds: who asks whether a folder is `in_use` has its lock for a moment


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Keep other processes out of ``folder`` while the context lasts; UserError where another process has it, or it
    cannot be locked. A child of this process does not keep the lock.

    Yields what says whether the lock is still there: nobody has removed or renamed it, or the folder, since.
    """
    from filelock import Timeout

    path = folder / ".lock"
    try:
        holder = _lock(path).acquire(timeout=_PATIENCE)
    except Timeout:
        number = path.read_text(errors="replace").strip() or "(unknown)"
        raise UserError(f"{folder} is in use by process {number}: let it end") from None
    except OSError as error:
        raise UserError(f"cannot lock {path}: {reason(error)}") from None
    with holder:
        path.write_text(str(os.getpid()))
        held = path.stat()  # whose number no other file gets while it is open

        def is_there() -> bool:
            try:
                return os.path.samestat(path.stat(), held)
            except OSError:
                return False

        yield is_there


def in_use(folder: Path) -> bool:
    """Whether a process has `locked` the folder, whose files are left alone."""
    import fcntl  # a shared lock, which filelock has none of: those who ask at once must not get in each other's way

    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or none that can be locked
        return False
    return False


@contextmanager
def alone(lock: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let one process at a time do something; the others call ``waiting`` and wait. The file ``lock``, of no other use,
    is there meanwhile, in a folder that exists."""
    from filelock import Timeout

    file_lock = _lock(lock)
    try:
        holder = file_lock.acquire(blocking=False)
    except Timeout:
        waiting()
        holder = file_lock.acquire()
    with holder:
        try:
            yield
        finally:
            lock.unlink()


def remove_idle(path: Path, lock: Path) -> bool:
    """Remove a file that processes change while they are `alone` with ``lock``; False where one does just now."""
    from filelock import Timeout

    try:
        with _lock(lock).acquire(blocking=False):
            path.unlink(missing_ok=True)
            lock.unlink()
    except (Timeout, OSError):
        return False
    return True


def _lock(path: Path) -> "BaseFileLock":
    from filelock import FileLock

    return FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a process that is killed
