"""``convnext datasets check``: faults of a data set, and the list of files to leave out for their sake."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from convnext.commands.terminal import parse
from convnext.config import MAX_PIXELS
from convnext.errors import DataError, SettingsError
from convnext.output import counted, say, show

if TYPE_CHECKING:
    from convnext.data.audit.check import Findings, Group, Item, Leak

_SHOWN = 10


@dataclass(frozen=True)
class _Check:
    """Look for images that cannot be read, that are there more than once, or in train and test, and other faults.

    The exit status is 1 if training would suffer, else 0.
    """

    root: tyro.conf.Positional[Path | None] = None
    """Folder of the data set."""
    name: str = "folder"
    """Data set; `convnext datasets` lists them. 'folder' is any folder of class folders."""
    exclude: Path | None = None
    """File with a path a line of images to leave out, as --data.exclude takes it."""
    fix: Path | None = None
    """File to write: the images to leave out to be rid of the faults, for --data.exclude."""
    max_pixels: Annotated[int, tyro.conf.arg(name="data.max-pixels")] = MAX_PIXELS
    """Pixels above which an image counts as unreadable; as in training."""
    max_value: Annotated[float | None, tyro.conf.arg(name="data.max-value")] = None
    """Value that is white in grey images of more than 8 bits; as in training."""
    workers: int | None = None
    """Processes that read images; None chooses by the data and the machine. The result does not depend on it."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print everything found, as JSON."""


def main(args: Sequence[str]) -> int:
    """Look for faults of a data set; 1 if training would suffer from them."""
    options = parse(_Check, args, "datasets check")
    if options.name == "folder" and options.root is None:
        raise SettingsError("check which folder? convnext datasets check DIR (or --name NAME)")
    if options.fix is not None and options.exclude is not None:
        raise SettingsError("fix lists all images to leave out: give it without --exclude")
    if options.fix is not None and (options.fix.is_dir() or not options.fix.parent.is_dir()):
        raise SettingsError(f"fix: {options.fix} is a folder, or its own folder is not there: choose a file")
    from convnext.config import DataSettings
    from convnext.data.audit.check import check
    from convnext.data.datasets.load import exclude_images, read_splits
    from convnext.data.sources import FileSource

    settings = DataSettings(
        name=options.name,
        root=options.root,
        exclude=options.exclude,
        workers=options.workers,
        max_pixels=options.max_pixels,
        max_value=options.max_value,
    )
    splits = exclude_images(read_splits(settings, allow_empty=True), settings)
    folders = [source.root if isinstance(source, FileSource) else None for source in (splits.train, splits.test)]
    files = None not in folders
    if options.fix is not None and not files:
        raise SettingsError(f"fix lists files, which the images of data set {options.name!r} are not: leave it out")
    # Only a folder without test/ and val/ has its test images beside the others.
    drawn = options.name == "folder" and folders[0] == folders[1]
    findings = check(splits, options.workers, drawn=drawn)

    def name(item: "Item") -> str:
        return os.path.relpath(item.name, options.root) if files else f"{item.split} {item.name}"

    if options.json:
        print(json.dumps(findings.as_dict(), indent=2))
    else:
        show(*_report(findings, name, str(options.root or options.name)))
    if options.fix is not None:
        assert options.root is not None
        _write(findings, options.fix, options.root)
    elif files and findings.to_leave_out():
        say("--fix FILE writes a list of the images to leave out, for --data.exclude")
    return int(findings.severe)


def _write(findings: "Findings", path: Path, root: Path) -> None:
    """Write the images to leave out, a path relative to ``root`` a line, under the reason.

    Raises:
        DataError: a name with a line break, which no line could hold.
    """
    from convnext.storage.files import writing

    lines = ["# images to leave out, found by convnext datasets check, for --data.exclude"]
    unwanted = findings.to_leave_out()
    for reason, items in unwanted.items():
        lines.append(f"# {reason}: {len(items)}")
        for item in items:
            name = os.path.relpath(item.name, root)
            if "\n" in name or "\r" in name:
                raise DataError(f"{item.name!r} has a line break in its name, which a list cannot hold: rename it")
            lines.append(f"./{name}" if name.startswith("#") else name)
    with writing(path) as unfinished:
        unfinished.write_bytes(os.fsencode("\n".join(lines) + "\n"))
    say(f"{path}: {counted(sum(map(len, unwanted.values())), 'image')} to leave out; train with --data.exclude {path}")


def _report(findings: "Findings", name: Callable[["Item"], str], where: str) -> list[str]:
    """A line on the images, then a headline for each kind of fault, with the first of its images."""
    counts_by_split = []
    for split, counts in findings.counts.items():
        fewest, most = min(counts.values()), max(counts.values())
        each = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
        counts_by_split.append(f"{split} {sum(counts.values()):,} ({each} a class)")
    total, classes = sum(sum(counts.values()) for counts in findings.counts.values()), len(findings.counts["train"])
    sections = [section for kind in (_damage_and_leaks, _repeats, _oddities) for section in kind(findings, name)]
    clean = "" if any(section.fault for section in sections) else "; no faults"
    lines = [f"{where}: {counted(total, 'image')} in {classes:,} classes: {', '.join(counts_by_split)}{clean}"]
    for section in sorted(sections, key=lambda section: not section.fault):
        lines.append(f"{'fault' if section.fault else 'note'}: {section.headline}")
        lines += [f"  {line}" for line in section.lines[:_SHOWN]]
        if len(section.lines) > _SHOWN:
            lines.append(f"  … and {len(section.lines) - _SHOWN:,} more (all of them: --json)")
    return lines


@dataclass(frozen=True)
class _Section:
    fault: bool
    headline: str
    lines: Sequence[str] = ()


def _damage_and_leaks(findings: "Findings", name: Callable[["Item"], str]) -> Iterator[_Section]:
    if findings.empty:
        headline = f"{counted(len(findings.empty), 'class')} without training images: fill or remove"
        yield _Section(True, f"{headline} {'it' if len(findings.empty) == 1 else 'them'}", findings.empty)
    prefix = "{}: unreadable image "
    lines = [f"{name(item)} {reason.removeprefix(prefix.format(item.name))}" for item, reason in findings.unreadable]
    if lines:
        yield _Section(True, f"{counted(len(lines), 'image')} cannot be read", lines)
    kinds: dict[tuple[str, str], list[Leak]] = {}
    for leak in findings.leaks:
        kinds.setdefault((leak.copy.split, leak.original.split), []).append(leak)
    for (split, later), leaks in kinds.items():
        exact = sum(leak.exact for leak in leaks)
        lines = [
            f"{name(leak.copy)} {_sign(leak.exact)} {name(leak.original)}"
            + ("" if leak.copy.label == leak.original.label else ", of another class")
            for leak in leaks
        ]
        headline = f"{counted(len(leaks), 'image')} of {split} {_are(len(leaks))} in {later} too"
        yield _Section(True, f"{headline}: {exact:,} exactly (=), {len(leaks) - exact:,} nearly (~)", lines)


def _repeats(findings: "Findings", name: Callable[["Item"], str]) -> Iterator[_Section]:
    from convnext.data.audit.check import MOST_DUPLICATES

    def lines(groups: "Sequence[Group]") -> list[str]:
        return [f" {_sign(group.exact)} ".join(map(name, group.items)) for group in groups]

    for split, counts in findings.counts.items():
        if conflicts := [group for group in findings.conflicts if group.items[0].split == split]:
            headline = (
                f"{counted(len(conflicts), 'image')} of {split} {_are(len(conflicts))} there under several classes"
            )
            yield _Section(findings.can_mend(conflicts[0]), headline, lines(conflicts))
        if duplicates := [group for group in findings.duplicates if group.items[0].split == split]:
            repeated = sum(len(group.items) - 1 for group in duplicates)
            fraction = f"{100 * repeated / sum(counts.values()):.2g} %"
            fault = split == "train" and findings.duplicate_fraction > MOST_DUPLICATES
            headline = (
                f"{counted(repeated, 'image')} of {split} ({fraction}) repeat{'' if repeated > 1 else 's'} others"
            )
            yield _Section(fault, f"{headline}, exactly (=) or nearly (~)", lines(duplicates))


def _oddities(findings: "Findings", name: Callable[["Item"], str]) -> Iterator[_Section]:
    from convnext.data.audit.check import BALANCING, FEWEST_IMAGES, MOST_IMBALANCE, MOST_NEAR
    from convnext.data.audit.signatures import SMALLEST_SIZE

    if findings.near_fraction > MOST_NEAR:
        nearly = f"{100 * findings.near_fraction:.2g} % of the images nearly repeat others"
        yield _Section(False, f"{nearly}: look at some of them (~) before you leave them out, they may only look alike")
    counts = findings.counts["train"]
    if findings.imbalance > MOST_IMBALANCE:
        counts = {label: count for label, count in counts.items() if count}
        largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        sizes = f"{largest} has {counts[largest]:,} training images, {smallest} {counts[smallest]:,}"
        yield _Section(False, f"the classes are out of balance: {sizes}; train with {BALANCING}")
    if findings.rare:
        lines = [f"{label}: {count}" for label, count in findings.rare.items()]
        headline = f"{counted(len(lines), 'class')} with fewer than {FEWEST_IMAGES} training images"
        yield _Section(False, headline, lines)
    if findings.odd_sizes:
        lines = [f"{name(item)}: {width}x{height} px" for item, width, height in findings.odd_sizes]
        headline = f"{counted(len(lines), 'image')} of an odd size: tiny, very long, or far from the others'"
        yield _Section(False, headline, lines)
    yield from _scales(findings, name)
    if findings.modes:
        modes = ", ".join(f"{count:,} {mode}" for mode, count in findings.modes.items())
        yield _Section(False, f"images of several modes, or an unusual one; all are read alike: {modes}")
    for note in findings.notes:
        yield _Section(False, note)
    if findings.tiny:
        yield _Section(False, f"images below {SMALLEST_SIZE} px were searched for exact copies alone")


def _scales(findings: "Findings", name: Callable[["Item"], str]) -> Iterator[_Section]:
    """Grey of more than 8 bits whose values are not those that its scale is for."""
    from convnext.data.audit.check import MOST_CLIPPED

    for problem, clipped in (("dark", False), ("mostly beyond black and white", True)):
        items = [(item, scale) for item, scale in findings.badly_scaled if (scale.clipped > MOST_CLIPPED) == clipped]
        if not items:
            continue
        white, largest = max(scale.white for _, scale in items), max(scale.largest for _, scale in items)
        # Cameras and scanners give 10, 12 or 14 bits, of which all are rarely seen in one image.
        likely = largest if largest <= 1 else 2 ** int(largest).bit_length() - 1
        lines = [f"{name(item)}: up to {scale.largest:,.6g}" for item, scale in items]
        headline = (
            f"{counted(len(lines), 'grey image')} of more than 8 bits {_are(len(lines))} {problem}: white is "
            f"{white:,.6g}, their values go up to {largest:,.6g}; --data.max-value {likely:.6g} may be right"
        )
        yield _Section(False, headline, lines)


def _sign(exact: bool) -> str:
    return "=" if exact else "~"


def _are(number: int) -> str:
    return "are" if number > 1 else "is"
