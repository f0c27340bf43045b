"""From the web, or from archives already there, to the unpacked files of a data set."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from convnext.data.datasets.entries import Dataset, File
from convnext.errors import DataError
from convnext.output import say
from convnext.storage import archives
from convnext.storage.downloads import DownloadError, download, refuse_offline
from convnext.storage.locks import alone


def fetch(entry: Dataset, root: Path) -> None:
    """Download, check and unpack what ``root`` lacks of the data set, with a line on standard error.

    An archive that is there already (`archive_path`) is used, and kept; one that was downloaded here is removed once it
    is unpacked. After an interruption the next call goes on.

    Raises:
        UserError: no connection, another checksum, a damaged archive, or no room; nothing is left that was not there,
            but the part of a download, and what is whole.
    """
    if not _missing(entry, root):
        return
    refuse_offline(entry.title)
    with _tidied((root / file.becomes).parent for file in entry.files), preparing(entry, root):
        missing = _missing(entry, root)  # another process may have got it while we waited
        wanted = [file for file in missing if not archive_path(file, root).exists()]
        if missing:
            _announce(entry, root, missing, wanted)
        for file in missing:
            target = root / file.becomes
            target.parent.mkdir(parents=True, exist_ok=True)
            if file in wanted:
                _download(file, target.parent)
            else:
                archives.verify(archive_path(file, root), file.md5)
            _unpack(file, archive_path(file, root), target, keep=file not in wanted)


def _missing(entry: Dataset, root: Path) -> list[File]:
    return [file for file in entry.files if not (root / file.becomes).exists()]


@contextmanager
def preparing(entry: Dataset, root: Path) -> Iterator[None]:
    """Let one process at a time look at what ``root`` has of the data set, and prepare the rest."""
    root.mkdir(parents=True, exist_ok=True)
    with alone(root / f".{entry.files[0].name}.lock"):
        yield


def _unpack(file: File, archive: Path, target: Path, keep: bool) -> None:
    try:
        if ".tar" in file.name or archive.suffix != ".gz":
            archives.unpack(archive, target, archives.inside(target.name), file.within)
        else:
            archives.gunzip(archive, target)
    except archives.DamagedArchiveError:
        if not keep:
            archive.unlink()
        raise
    if not keep:
        archive.unlink()


def archive_path(file: File, root: Path) -> Path:
    """Where a file of a data set lies until it is unpacked: beside what it becomes, or in ``root``."""
    beside, in_root = (root / file.becomes).parent / file.name, root / file.name
    return in_root if in_root.is_file() and not beside.is_file() else beside


def find(entry: Dataset, root: Path, known: Callable[[Path], bool]) -> Path:
    """The folder of a data set of one archive, absolute; fetched where it is not there.

    It lies in ``root``, or is ``root`` itself, if ``known`` says so.

    Raises:
        UserError: it cannot be fetched.
    """
    root, becomes = root.absolute(), Path(entry.files[0].becomes)
    for folder in (root / becomes, root / becomes.name):
        if folder.is_dir():
            return folder
    if known(root):
        return root
    fetch(entry, root)
    return root / becomes


def _announce(entry: Dataset, root: Path, missing: Sequence[File], wanted: Sequence[File]) -> None:
    """Say what is about to happen, if there is room for it."""
    size = sum(file.size or 0 for file in wanted)
    # An archive and what comes out of it; pictures hardly shrink in an archive.
    needed = size + sum(file.size or 0 for file in missing)
    parent = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise DataError(
            f"{entry.title} needs about {needed / 1e9:.1f} GB in {root}, where there is room for {free / 1e9:.1f} GB: "
            f"free space, or choose a folder on another disk"
        )
    if wanted:
        amount = f" ({size / 1e6:,.0f} MB)" if size else ""
        host = urlsplit(wanted[0].mirrors[0]).hostname
        say(f"{entry.title} is not in {root}: downloading it{amount} from {host}")
    else:
        say(f"unpacking {entry.title} in {root}")


def _download(file: File, folder: Path) -> None:
    errors: list[str] = []
    for mirror in file.mirrors:
        try:
            download(mirror + file.name, folder, md5=file.md5, keep_partial=True)
            return
        except DownloadError as error:
            errors.append(str(error))
    raise DownloadError("; ".join(errors))


@contextmanager
def _tidied(folders: Iterable[Path]) -> Iterator[None]:
    """On failure, remove those of the folders, and of the folders above, that were made meanwhile and are empty."""
    absent = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    try:
        yield
    except BaseException:
        for folder in sorted(absent, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        raise
