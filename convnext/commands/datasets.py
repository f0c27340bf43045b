"""``convnext datasets``: what there is, one set in full, fetching it, writing it as a folder, looking for faults."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convnext.commands.terminal import Table, parse, print_table
from convnext.errors import SettingsError
from convnext.output import show


@dataclass(frozen=True)
class _Datasets:
    """List the data sets; show one, fetch it, or write it as a folder of PNG files.

    `convnext datasets check --help`: look for damaged, repeated and mislabelled images.
    """

    name: tyro.conf.Positional[str | None] = None
    """Data set to show."""
    download: Path | None = None
    """Folder to fetch it into: downloaded, checked and unpacked there, from where an interruption left it."""
    to_folder: Path | None = None
    """New folder to write: train/<class>/*.png and test/<class>/*.png."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of the data set, for to-folder, where it needs one."""


def main(args: Sequence[str]) -> int:
    """List the data sets; show, fetch or check one, or write it as a folder of images."""
    if args and args[0] == "check":
        from convnext.commands import datasets_check

        return datasets_check.main(args[1:])
    options = parse(_Datasets, args, "datasets")
    if options.name is None:
        if options.to_folder is not None or options.download is not None:
            raise SettingsError("which data set? convnext datasets NAME --to-folder DIR, or NAME --download DIR")
        _list()
    elif options.download is None and options.to_folder is None:
        _show(options.name)
    else:
        from convnext.config import DataSettings
        from convnext.data.datasets.load import export_folder, obtain, read_splits

        if options.download is not None:
            obtain(options.name, options.download)
            show(str(options.download))
        if options.to_folder is not None:
            # No validation images are held out: they would lie among the training images anyway.
            settings = DataSettings(name=options.name, root=options.root or options.download)
            export_folder(read_splits(settings), options.to_folder)
            show(str(options.to_folder))
    return 0


def _list() -> None:
    from convnext.data.datasets.catalogue import DATASETS, FAMILIES

    rows = Table("data set", "what it is", "images", "classes", "download", "licence")
    for name, entry in sorted(DATASETS.items()):
        images = f"{sum(entry.splits.values()):,}" if entry.splits else ""
        summary = entry.summary if entry.title.lower() == name else f"{entry.title}: {entry.summary}"
        rows.add_row(
            name, summary, images, f"{entry.classes:,}" if entry.classes else "", _megabytes(entry.size), entry.licence
        )
    for prefix, summary in FAMILIES.items():
        rows.add_row(prefix, summary.removeprefix(prefix), "", "", "", "its own")
    print_table(rows)


def _show(name: str) -> None:
    from convnext.data.datasets.catalogue import DATASETS, FAMILIES, find_entry

    for prefix, summary in FAMILIES.items():
        if name.startswith(prefix):
            print(summary)
            return
    if Path(name).is_dir() and name not in DATASETS:
        raise SettingsError(f"{name} is a folder: to check its images: convnext datasets check {name}")
    entry = find_entry(name)
    counts = ", ".join(f"{count:,} {split}" for split, count in entry.splits.items())
    names = ", ".join(entry.class_names.values())
    facts = {
        name: f"{entry.title}: {entry.summary}",
        "images": f"{counts}{counts and '; '}{entry.images}",
        "classes": f"{entry.classes:,}{names and ': '}{names}" if entry.classes else "",
        "reported": entry.reported,
        "mean, std": f"{list(entry.mean)}, {list(entry.std)}" if entry.mean else "measured on the training images",
        "licence": entry.licence,
        "home": entry.home,
        "how to get it": entry.instructions,
    }
    for fact, value in facts.items():
        if value:
            show(f"{fact}: {value}")
    for file in entry.files:
        where = " or ".join(mirror + file.name for mirror in file.mirrors) or file.name
        print(", ".join(filter(None, (f"file: {where}", _megabytes(file.size), f"MD5 {file.md5}"))))


def _megabytes(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
