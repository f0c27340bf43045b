"""Image files by their paths, without opening any; and names of classes for people."""

import codecs
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.errors import DataError

if TYPE_CHECKING:  # the catalogue's entries need no torch
    from convnext.data.sources import FileSource


def file_source(root: Path, paths: Sequence[str], targets: Sequence[int]) -> "FileSource":
    """Colour images of ``paths``, relative to ``root``, and their class indices."""
    import numpy as np

    from convnext.data.sources import FileSource

    return FileSource(np.array([os.fsencode(path) for path in paths]), np.array(targets, np.int64), 3, root)


def list_images(root: Path, folders: Iterable[str]) -> "FileSource":
    """The images that lie directly in the folders, sorted by name; a folder's number is their class.

    Quicker than `scan_folder`, which looks deeper, by as much as matters for a million files. Deeper folders of the
    data sets that are read in this way hold copies and other things.

    Raises:
        DataError: a folder that is not there, or has no images.
    """
    from convnext.data.files import list_folder
    from convnext.data.sources import LeftOut

    paths: list[str] = []
    targets: list[int] = []
    left_out = LeftOut()
    for target, folder in enumerate(folders):
        try:
            names = sorted(entry.name for entry in list_folder(root / folder, left_out)[1])
        except OSError as error:
            raise DataError(f"cannot list the images in {root / folder}: {error.strerror}") from None
        if not names:
            raise DataError(f"{root / folder} has no images")
        paths += [f"{folder}/{name}" for name in names]
        targets += [target] * len(names)
    return replace(file_source(root, paths, targets), left_out=left_out)


def subfolders(root: Path, subfolder: str) -> list[str]:
    """Names of the class folders in ``root/subfolder``, sorted.

    Raises:
        DataError: it is not there, or has none.
    """
    from convnext.data.files import class_folders

    folder = root / subfolder
    names = class_folders(folder) if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder} {'has no class folders' if folder.is_dir() else 'is not there'}")
    return names


def read_lines(path: Path, errors: str = "strict") -> list[str]:
    """The lines of a text file in UTF-8, or in UTF-16 with a byte order mark, without empty ones.

    Args:
        path: the file.
        errors: what to do about bytes that are not UTF-8, as for `bytes.decode`.

    Raises:
        DataError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16") if utf16 else raw.decode("utf-8-sig", errors)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    # Not by str.splitlines, which breaks lines at characters that names of files may have.
    return [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def synset_names(root: Path) -> dict[str, str]:
    """The first name of each WordNet number, of ``words.txt`` or ``LOC_synset_mapping.txt`` in ``root``; or nothing.

    Their lines are the number, white space, and names with commas between them.
    """
    for path in (root / "words.txt", root / "LOC_synset_mapping.txt"):
        if path.is_file():
            pairs = (line.split(maxsplit=1) for line in read_lines(path))
            return {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
    return {}


def human_names(keys: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """A different name for each class: its own where ``names`` has one, with the key where several share it."""
    listed = [names.get(key, key) for key in keys]
    counts = Counter(listed)
    return tuple(
        f"{name} ({key})" if counts[name] > 1 and name != key else name for key, name in zip(keys, listed, strict=True)
    )
