"""Data sets of the Hugging Face Hub, or of folders laid out like one: ``hf:owner/name``, ``hf:owner/name:config``,
``hf:./folder``.

The `datasets` package (extra ``hub``) downloads them and keeps them as Arrow files, in its own cache or in
``data.root``. Worker processes share these files' memory. No code of a data set runs: from version 4 on, the package
cannot.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnext.config import DataSettings
from convnext.data.datasets.labels import Labels, number_classes
from convnext.data.images import Raw, UnreadableImageError
from convnext.data.sources import ImageSource, digest, file_state
from convnext.data.splits import SPELLINGS, Splits, make_splits
from convnext.errors import DataError, UserError

if TYPE_CHECKING:
    from datasets import Dataset

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls")


@dataclass(frozen=True)
class HubSource(ImageSource):
    """``(N,)`` rows of a split, of whose table only the column of images is left, not decoded."""

    table: "Dataset"
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    channels: int
    name: str

    def raw(self, index: int) -> Raw:
        """The encoded file's bytes."""
        (image,) = self.table[int(self.rows[index])].values()
        if image is None:
            raise UnreadableImageError(f"{self.image_name(index)}: unreadable image (the row has none)")
        if image["bytes"] is not None:
            encoded: bytes = image["bytes"]
            return encoded
        try:
            return Path(image["path"]).read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"{image['path']}: unreadable image ({error.strerror})") from error

    def image_name(self, index: int) -> str:
        """The split and the row's number."""
        return f"{self.name}[{self.rows[index]}]"

    def fingerprint(self) -> str:
        """A digest of the images' file names, where they have one, of their sizes in bytes, and of the labels.

        Neither the data set's name nor the package's own fingerprint is part of it: the same rows give the same digest
        on every machine, in every version of the package, and from a copy in a local folder.
        """
        import pyarrow.compute as arrow

        images = self.table.with_format("arrow")[:].column(0)
        paths = arrow.struct_field(images, "path").take(self.rows).to_pylist()
        sizes = arrow.binary_length(arrow.struct_field(images, "bytes")).take(self.rows)
        names = "\0".join(Path(path or "").name for path in paths)
        return digest(names.encode(), arrow.fill_null(sizes, -1).to_numpy().astype(np.int64), self.targets)

    def location(self) -> str:
        """The data set, or its folder, and the split."""
        return self.name

    def states(self) -> Iterator[bytes]:
        """Those of the Arrow files, and of images that lie in files of their own."""
        import pyarrow.compute as arrow

        files = [os.fsencode(file["filename"]) for file in self.table.cache_files]
        yield from (path + b"\0" + file_state(path) for path in files)
        images = self.table.with_format("arrow")[:].column(0).take(self.rows)
        alone = images.filter(arrow.is_null(arrow.struct_field(images, "bytes")))
        yield from (file_state(os.fsencode(path or "")) for path in arrow.struct_field(alone, "path").to_pylist())


def hub_splits(settings: DataSettings) -> Splits:
    """The splits of ``data.name`` ``hf:…``.

    ``validation`` is `val`; without ``test``, or where its labels are hidden (-1), it is the test; without both,
    `test_fraction` is held out. The columns are those of type ``Image`` and ``ClassLabel``; without the latter, a
    column of names or numbers that is called like a label.

    Raises:
        UserError: the package is missing.
        DataError: no such data set, no access, no network, or columns or splits that cannot be used.
    """
    name, config = _parse(settings.name.removeprefix("hf:"))
    tables = _load(name, config, settings.root)
    there = {
        split: [spelling for spelling in spellings if spelling in tables] for split, spellings in SPELLINGS.items()
    }
    spelled = {split: spellings[0] for split, spellings in there.items() if spellings}
    if "train" not in spelled:
        raise DataError(f"{name} has no split called train: it has {', '.join(tables)}")
    train = tables[spelled["train"]]
    image, label = _columns(name, train)
    labels: dict[str, Labels] = {}
    for split, spelling in spelled.items():
        if (values := _labels(tables[spelling], label, f"{name}/{spelling}", split)) is not None:
            labels[split] = values
    names = getattr(train.features[label], "names", None)
    classes, targets = number_classes(labels, names, f"{name}, column {label!r}")
    from datasets import Image

    sources = {}
    for split, numbers in targets.items():
        images = tables[spelled[split]].select_columns([image]).cast_column(image, Image(decode=False))
        # Colour always: one grey picture among the rows says nothing about the others.
        sources[split] = HubSource(images, np.arange(len(images)), numbers, 3, f"{name}/{spelled[split]}")
    return make_splits(classes, sources, settings.test_fraction)


def _parse(name: str) -> tuple[str, str | None]:
    """The data set's name, or its folder's absolute path, and its configuration."""
    if name in ("", ":"):
        raise DataError("data.name: give hf:owner/name, hf:owner/name:config, or hf:./folder")
    config = ""
    if not Path(name).expanduser().exists():  # a folder may have a colon in its name
        name, _, config = name.partition(":")
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve()), config or None
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise DataError(f"data.name: there is no folder {path}")
    return name, config or None


def _load(name: str, config: str | None, root: Path | None) -> "Mapping[str, Dataset]":
    try:
        import datasets

        runs_code = int(datasets.__version__.partition(".")[0]) < 4
    except ImportError:
        runs_code = True
    if runs_code:
        raise UserError(
            "Hugging Face data sets need the package datasets, from version 4 on: pip install 'convnext[hub]'"
        )
    cache = root or Path(datasets.config.HF_DATASETS_CACHE)
    if Path(name).is_absolute():
        # The package takes its copy of a folder with a card for good, also when the folder's files have changed.
        states = ((path, path.stat()) for path in sorted(Path(name).rglob("*")) if path.is_file())
        lines = (f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0" for path, status in states)
        cache /= f"folder-{digest(''.join(lines).encode('utf-8', 'surrogateescape'))}"
    try:
        loaded: Mapping[str, Dataset] = datasets.load_dataset(name, config, cache_dir=str(cache))
    except Exception as error:  # of the network, the disk, the Hub, the files and their format: the package wraps few
        raise DataError(f"cannot load {name}: {_reason(error)}") from error
    return loaded


def _reason(error: Exception) -> str:
    """What went wrong and what to do about it, in a line."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Its second line lists the configurations, the others are Python for programmers.
    text = ". ".join(lines[:2])
    if "gated" in text:
        return f"{text}; ask for access on its page, then log in: hf auth login"
    if isinstance(error, DatasetNotFoundError):
        return f"{text}; check the name, and if it is private, log in: hf auth login"
    if isinstance(error, ConnectionError):
        return f"{text}; check the network (and HF_HUB_OFFLINE), or give a folder that has it: hf:./folder"
    if "config" in text.lower():
        return f"{text}; give its name: hf:owner/name:config"
    return text


def _columns(name: str, table: "Dataset") -> tuple[str, str]:
    """The columns of the images and of the labels."""
    from datasets import ClassLabel, Image, Value

    def those(kind: type) -> list[str]:
        return [column for column, feature in table.features.items() if isinstance(feature, kind)]

    images = those(Image)
    labels = those(ClassLabel) or [column for column in those(Value) if column in _LABEL_NAMES]
    return _choose(name, table, "images", images, _IMAGE_NAMES), _choose(name, table, "classes", labels, _LABEL_NAMES)


def _choose(name: str, table: "Dataset", what: str, columns: list[str], preferred: tuple[str, ...]) -> str:
    """The only one of the columns, or the one that is called as usual."""
    from datasets import Value

    if len(columns) == 1:
        return columns[0]
    for column in preferred:
        if column in columns:
            return column
    kinds = {
        column: feature.dtype if isinstance(feature, Value) else type(feature).__name__
        for column, feature in table.features.items()
    }
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    problem = f"several columns of {what}, and none called {preferred[0]!r}" if columns else f"no column of {what}"
    raise DataError(f"{name} has {problem}, among {listed}; name one {preferred[0]!r} in a copy, and give hf:./folder")


def _labels(table: "Dataset", column: str, where: str, split: str) -> Labels | None:
    """``(N,)`` labels as they are in the table; None for a test whose labels are hidden.

    Raises:
        DataError: no rows, rows without a label, or labels that are neither numbers nor names.
    """
    import pyarrow

    values = table.select_columns([column]).with_format("arrow")[:].column(0)
    if not len(values):
        raise DataError(f"{where} has no rows")
    if pyarrow.types.is_integer(values.type):
        numbers = values.fill_null(-1).to_numpy().astype(np.int64)
        absent = numbers == -1
    elif pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
        numbers, absent = None, values.is_null().to_numpy()
    else:
        raise DataError(f"{where}, column {column!r}: labels of type {values.type}; they must be numbers or names")
    if split == "test" and absent.all():
        return None
    if absent.any():
        raise DataError(f"{where}: {absent.sum()} of {len(absent)} rows have no label, such as row {absent.argmax()}")
    return np.array(values.to_pylist(), np.str_) if numbers is None else numbers
