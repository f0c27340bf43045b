"""Files that are either complete or not there."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convnext.errors import CheckpointError, SettingsError, reason

DIGESTS = "sha256.json"
"""The file of a checkpoint's folder that says what is in each of the others."""


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a path to write beside ``path``; rename it to ``path`` once its contents are on the disk."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with usual_mode(unfinished):
            yield unfinished
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write does not say where
            error.filename = str(path)
        raise


@contextmanager
def usual_mode(path: Path) -> Iterator[Path]:
    """Make a file, and give it back the mode that the system gave it then, by umask and folder, after the context:
    safetensors writes files that only their owner can read."""
    path.touch()
    mode = path.stat().st_mode
    yield path
    path.chmod(stat.S_IMODE(mode))


def check_new(path: Path) -> None:
    """Refuse, with a SettingsError, a file that cannot be written without replacing one, before there is work to
    lose."""
    if path.exists():
        raise SettingsError(f"{path} exists already: choose a new name")
    if not path.parent.is_dir():
        raise SettingsError(f"folder {path.parent} is not there: make it first")


def sweep(folder: Path) -> None:
    """Remove what processes that were killed while `writing` left in ``folder``, which is locked by this one."""
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
    hasher = hashlib.new(kind, usedforsecurity=kind != "md5")
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
            done += len(block)
            if report is not None:
                report(done, size)
    return hasher.hexdigest()


def check_whole(folder: Path, *names: str) -> None:
    """Refuse, with a CheckpointError, files of a checkpoint that are not what was written, as `DIGESTS` in its folder
    says; those of format 1, and those that were copied without the others, have no digests to tell by."""
    table = folder / DIGESTS
    if not table.exists():
        return
    try:
        digests = json.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {table}: {reason(error)}") from None
    if not isinstance(digests, dict):
        raise CheckpointError(f"cannot read {table}: it is no table of digests")
    for path in (folder / name for name in names):
        if path.is_file() and digest(path) != digests.get(path.name):
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 is not the one in {DIGESTS} beside it; use another checkpoint, copy "
                f"this one again, or remove {DIGESTS} to use it as it is"
            )


def sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
