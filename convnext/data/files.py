"""Image files below folders: which names mean one, what is left out, and the class folders that they lie in."""

import os
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from convnext.data.sources import FileSource, LeftOut
from convnext.errors import DataError
from convnext.output import few

_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
_LISTINGS_KEPT = 3  # a folder's train, val and test
_SETTLED = 2_000_000_000  # nanoseconds; a file that comes right after a listing may leave a folder's time as it was
_States = dict[str, tuple[int, int, int]]  # of folders: they change when a name comes or goes


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's; hidden files are left out."""
    return not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES


def normal_form(name: str) -> str:
    """The one spelling (NFC) of a text that file systems may spell in several ways."""
    return unicodedata.normalize("NFC", name)


def image_files(folder: str | Path, left_out: LeftOut, visited: list[str] | None = None) -> Iterator[str]:
    """Paths of the images below a folder, which each begins with, in no order.

    Hidden files and folders mean nothing; links are followed, into each folder once. A broken link counts as an image:
    reading it says what is wrong.

    Args:
        folder: where to look.
        left_out: to which files are added that are not named like images or are no files, and unreadable folders.
        visited: to which the folders are added.
    """
    seen = {os.path.realpath(parent) for parent in Path(folder).absolute().parents}  # links may lead back
    waiting = [os.fspath(folder)]
    while waiting:
        directory = waiting.pop()
        if (real := os.path.realpath(directory)) in seen:
            continue
        seen.add(real)
        if visited is not None:
            visited.append(directory)
        try:
            deeper, images = list_folder(directory, left_out)
        except OSError as error:
            left_out.add(f"folders that cannot be read ({error.strerror})", directory)
            continue
        yield from (entry.path for entry in images)
        waiting += [entry.path for entry in reversed(deeper)]


def has_images(folder: Path) -> bool:
    """Whether there is an image below a folder; quick where there is."""
    return next(image_files(folder, LeftOut()), None) is not None


def list_folder(folder: str | Path, left_out: LeftOut) -> "tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]":
    """The sub-folders and the images directly in a folder; see `image_files`.

    Raises:
        OSError: it cannot be listed.
    """
    with os.scandir(os.fspath(folder)) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".")]
    folders: list[os.DirEntry[str]] = []
    files: list[os.DirEntry[str]] = []
    for entry in seen:
        (folders if _is_folder(entry) else files).append(entry)
    return folders, [entry for entry in files if _is_image(entry, left_out)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: "os.DirEntry[str]", left_out: LeftOut) -> bool:
    if not is_image_name(entry.name):
        left_out.add(Path(entry.name).suffix.lower() or "no ending", entry.path)
        return False
    if entry.is_file(follow_symlinks=False):  # known from the listing, at no cost
        return True
    try:
        regular = stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a broken link
        return True
    if not regular:
        left_out.add("pipes, devices and sockets", entry.path)
    return regular


def class_folders(folder: Path) -> list[str]:
    """Names of the sub-folders of ``folder``, sorted; hidden ones left out.

    Raises:
        DataError: it cannot be listed; or a name that is not UTF-8, which no report could hold.
    """
    try:
        names = sorted(entry.name for entry in list_folder(folder, LeftOut())[0])
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{folder} has a class folder whose name is not readable text: {name!r}; rename it"
            ) from None
    return names


# Choosing by the images, training and evaluating in one process look at the same folder, which may have millions.
_listings: dict[tuple[str, tuple[str, ...]], tuple[FileSource, _States]] = {}


def _states(folders: Iterable[str]) -> _States:
    """When each folder changed; nothing where one is not there."""
    try:
        statuses = {folder: os.stat(folder) for folder in folders}  # noqa: PTH116  # of many folders
    except OSError:
        return {}
    return {folder: (status.st_mtime_ns, status.st_dev, status.st_ino) for folder, status in statuses.items()}


def scan_folder(folder: Path, classes: Sequence[str]) -> FileSource:
    """All images below ``folder/<class>/``, sorted by path; listed once as long as no folder among them changes.

    A class's folder may spell its name in another Unicode form.

    Raises:
        DataError: no images, or some in a folder that is not among ``classes``.
    """
    key = (os.path.realpath(folder), tuple(classes))
    if (listing := _listings.get(key)) is not None and _states(listing[1]) == listing[1]:
        return replace(listing[0], root=folder)
    start = time.time_ns()
    visited = [os.fspath(folder)]
    source = _scan(folder, classes, visited)
    _listings.pop(key, None)
    states = _states(map(os.path.abspath, visited))
    if states and all(changed < start - _SETTLED for changed, _, _ in states.values()):
        _listings[key] = source, states
        if len(_listings) > _LISTINGS_KEPT:
            del _listings[next(iter(_listings))]
    return source


def _scan(folder: Path, classes: Sequence[str], visited: list[str]) -> FileSource:
    left_out = LeftOut()
    numbers = {normal_form(name): number for number, name in enumerate(classes)}
    of_class: list[list[bytes]] = [[] for _ in classes]
    unknown = []
    prefix = os.path.join(folder, "")  # noqa: PTH118  # taken off a million paths
    for name in class_folders(folder):
        images = [os.fsencode(path.removeprefix(prefix)) for path in image_files(prefix + name, left_out, visited)]
        if (number := numbers.get(normal_form(name))) is not None:
            of_class[number] += images
        elif images:
            unknown.append(name)
        else:
            left_out.add("empty folders of no class", prefix + name)
    if unknown:
        raise DataError(f"{folder} has classes that the training images lack: {few(unknown, 5)}")
    paths = [path for images in of_class for path in sorted(images)]
    if not paths:
        raise DataError(f"{folder} has no images in its class folders: expected {folder}/<class>/*.jpg (or .png, …)")
    for entry in list_folder(folder, LeftOut())[1]:
        left_out.add("images in no class folder", entry.path)
    targets = np.repeat(np.arange(len(classes)), [len(images) for images in of_class])
    # Colour always: one grey picture among the files says nothing about the others.
    return FileSource(np.array(paths), targets, channels=3, root=folder, left_out=left_out)
