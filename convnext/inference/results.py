"""What comes of predictions in files: pooled features with their paths, and pictures.

Each writer is a context that gives a function, to be called with each image's path and `Result` as they come. Its file
gets its name once the context has ended well.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from convnext.data.images import Picture
from convnext.errors import DataError, SettingsError
from convnext.inference.explanations import Explanation
from convnext.inference.files import is_url
from convnext.inference.predictor import Result
from convnext.output import counted, say
from convnext.storage.files import check_new, writing

Writer: TypeAlias = Callable[[str, Result], None]
PREVIEW = 512
"""Longer side in pixels of the images in pictures."""
PICTURED = 5
"""Classes in a picture."""
_ON_A_SHEET = 64  # images
ROWS = 1024  # of a Parquet file that are written at once
_LONGEST_NAME = 200  # bytes of a file's name, of the 255 that systems allow


@contextmanager
def embeddings(path: Path) -> Iterator[Writer]:
    """Write the features ``(N, D)`` of images, as float32: a ``.npy`` with the paths beside it, a line a row, in
    ``.paths.txt``; or a ``.parquet`` with the columns ``path`` and ``features``.

    Raises:
        SettingsError: another kind of file, one that exists, or pyarrow is not installed.
        DataError: no image could be read.
    """
    if path.suffix not in _EMBEDDINGS:
        raise SettingsError(f"{path}: features go into a file that ends in {' or '.join(_EMBEDDINGS)}")
    check_new(path)
    rows = 0
    with writing(path) as unfinished, _EMBEDDINGS[path.suffix](path, unfinished) as add:

        def write(name: str, result: Result) -> None:
            nonlocal rows
            assert result.features is not None
            add(os.fsencode(name).decode("utf-8", "backslashreplace"), result.features)
            rows += 1

        yield write
        if not rows:
            raise DataError(f"no image could be read, so {path} was not written")


_Add: TypeAlias = Callable[[str, NDArray[np.float32]], None]


@contextmanager
def _npy(path: Path, unfinished: Path) -> Iterator[_Add]:
    paths = path.with_suffix(".paths.txt")
    check_new(paths)
    shape = [0, 0]

    with writing(paths) as names, unfinished.open("wb") as file, names.open("w", encoding="utf-8") as lines:

        def write_header() -> None:
            # numpy leaves room in it for any number of rows.
            header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(file, header)

        def add(name: str, features: NDArray[np.float32]) -> None:
            if not shape[0]:
                shape[1] = len(features)
                write_header()
            file.write(features.astype("<f4").tobytes())
            lines.write(name.replace("\r", "\\r").replace("\n", "\\n") + "\n")
            shape[0] += 1

        yield add
        file.seek(0)
        write_header()


@contextmanager
def _parquet(path: Path, unfinished: Path) -> Iterator[_Add]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise SettingsError(
            f"{path} needs pyarrow, which is not installed: pip install 'convnext[hub]', or write a .npy"
        ) from None
    names: list[str] = []
    rows: list[NDArray[np.float32]] = []
    file: Any = None

    def flush() -> None:
        nonlocal file
        if not rows:
            return
        features = pyarrow.FixedSizeListArray.from_arrays(np.concatenate(rows), len(rows[0]))
        table = pyarrow.table({"path": pyarrow.array(names, pyarrow.string()), "features": features})
        file = file or parquet.ParquetWriter(unfinished, table.schema)
        file.write_table(table)
        names.clear()
        rows.clear()

    def add(name: str, features: NDArray[np.float32]) -> None:
        names.append(name)
        rows.append(features)
        if len(rows) == ROWS:
            flush()

    try:
        yield add
        flush()
    finally:
        if file is not None:
            file.close()


_EMBEDDINGS: dict[str, Any] = {".npy": _npy, ".parquet": _parquet}


@contextmanager
def pictures(folder: Path) -> Iterator[Writer]:
    """Write a PNG an image into ``folder``, which is made: the image beside bars of its most probable classes. It has
    the image's name; where there is a file of that name, a number is added, and a line says so at the end."""
    from convnext.plots.predictions import prediction_picture

    with _named(folder, "picture") as path_of:

        def write(name: str, result: Result) -> None:
            assert result.preview is not None
            prediction_picture(result.preview, name, result.classes[:PICTURED], path_of(name))

        yield write


@contextmanager
def explanations(folder: Path, explain: Callable[[Picture], Explanation]) -> Iterator[Writer]:
    """Write a PNG an image into ``folder``, which is made: where the model looked in it, which ``explain`` finds.
    They are called as `pictures` are."""
    with _named(folder, "explanation") as path_of:

        def write(name: str, result: Result) -> None:
            assert result.picture is not None
            explain(result.picture).save(path_of(name))

        yield write


@contextmanager
def _named(folder: Path, noun: str) -> Iterator[Callable[[str], Path]]:
    """A function from an image's name to that of a new PNG in the folder, to be written before it is called again."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    taken = Counter[str]()
    count = numbered = 0

    def path_of(name: str) -> Path:
        nonlocal count, numbered
        stem = _stem(name)
        path = folder / f"{stem}.png"
        numbered += path.exists()
        while path.exists():
            taken[stem] += 1
            path = folder / f"{stem}-{taken[stem] + 1}.png"
        count += 1
        return path

    try:
        yield path_of
    except BaseException:
        if is_new:
            with suppress(OSError):  # there is something in it
                folder.rmdir()
        raise
    others = f"; {numbered:,} numbered, since there were others of their name" if numbered else ""
    say(f"{counted(count, noun)} in {folder}{others}")


def _stem(name: str) -> str:
    """The name of an image, without its folder and its ending, as that of a file."""
    if name == "-":
        return "standard-input"
    name = PurePosixPath(unquote(urlsplit(name).path)).name if is_url(name) else Path(name).name
    stem = Path(name or "image").stem.replace("/", "_").replace("\0", "")
    return os.fsdecode(os.fsencode(stem)[:_LONGEST_NAME])


@contextmanager
def contact_sheet(path: Path, paths: Sequence[str]) -> Iterator[Writer]:
    """Write a PNG of the images with their most probable classes, or of 64 that are spread evenly over ``paths``.

    Raises:
        SettingsError: a file that exists, or no PNG.
    """
    from convnext.plots.predictions import PredictedImage, prediction_grid

    if path.suffix.lower() != ".png":
        raise SettingsError(f"{path}: a contact sheet's name ends in .png")
    check_new(path)
    chosen = {paths[index] for index in np.linspace(0, len(paths) - 1, min(_ON_A_SHEET, len(paths))).astype(int)}
    shown: list[PredictedImage] = []

    def write(name: str, result: Result) -> None:
        if name in chosen and len(shown) < _ON_A_SHEET and result.preview is not None:
            best = result.classes[0]
            shown.append(PredictedImage(result.preview, Path(name).name, None, best.class_name, best.probability))

    yield write
    if not shown:
        raise DataError(f"no image could be read, so {path} was not written")
    some = "" if len(shown) == len(paths) else f"{len(shown)} of "
    prediction_grid(shown, f"{some}{counted(len(paths), 'image')}", path)
