"""Faults of a data set that training would suffer from, and which images to leave out to be rid of them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.audit.duplicates import find_copies
from convnext.data.audit.signatures import SMALLEST_SIZE, read_all, same_in_detail
from convnext.data.images import Scale
from convnext.data.progress import tracked
from convnext.data.sources import FileSource, ImageSource
from convnext.data.splits import Splits

MOST_DUPLICATES = 0.01  # of the training images
MOST_NEAR = 0.05  # of all images, before near copies are to be doubted
MOST_IMBALANCE = 10  # images of the largest class for one of the smallest
BALANCING = "--data.sampler balanced or --loss.class-weights balanced"  # what to do about more
FEWEST_IMAGES = 5  # of a class, to train on
SMALLEST_PIXELS = 8  # shorter side
DARKEST = 0.3  # of white, to which the values of an image of more than 8 bits rise: those of 14 bits in 16 do not
MOST_CLIPPED = 0.5  # of an image's pixels
ODD_RATIO = 8  # of the longer side to the shorter one, or of the shorter side to the median one


class Item(NamedTuple):
    """An image: its split, its index there, its path or what else it is called in a report, and its class."""

    split: str
    number: int
    name: str
    label: str


class Leak(NamedTuple):
    """An image that repeats one of a later split, pixel by pixel or nearly."""

    copy: Item
    original: Item
    exact: bool


class Group(NamedTuple):
    """Images of a split that repeat the first of them, which is the largest; all pixel by pixel, or some nearly."""

    items: tuple[Item, ...]
    exact: bool

    @property
    def conflict(self) -> bool:
        """Whether they are of several classes."""
        return len({item.label for item in self.items}) > 1


@dataclass(frozen=True)
class Findings:
    """The result of `check`."""

    counts: dict[str, dict[str, int]]  # images by split and class
    unreadable: list[tuple[Item, str]]  # each with the reason
    leaks: list[Leak]  # images of train that are in val or test too, and those of val that are in test
    groups: list[Group]  # images that are in a split more than once
    # Below 8 px, eight times as long as wide, or eight times as large or small as usual: with width and height.
    odd_sizes: list[tuple[Item, int, int]]
    # Grey of more than 8 bits that comes out dark, or lies mostly beyond black and white: with how it is scaled.
    badly_scaled: list[tuple[Item, Scale]]
    modes: dict[str, int]  # by Pillow's mode, where there are several, or one that is neither colour nor grey
    ignored: dict[str, int]  # what lies among the images and is left out, by the end of its name or another reason
    notes: tuple[str, ...]  # lines on what was left out, and on few images
    tiny: bool  # whether most images are too small to look for copies that are not exact
    drawn: bool  # whether the test images were drawn from the same folders as the others, by chance

    @property
    def conflicts(self) -> list[Group]:
        """Groups of several classes."""
        return [group for group in self.groups if group.conflict]

    @property
    def duplicates(self) -> list[Group]:
        """Groups of one class."""
        return [group for group in self.groups if not group.conflict]

    @property
    def duplicate_fraction(self) -> float:
        """Fraction of the training images that repeat another of their class."""
        repeated = sum(len(group.items) - 1 for group in self.duplicates if group.items[0].split == "train")
        return repeated / max(sum(self.counts["train"].values()), 1)

    @property
    def near_fraction(self) -> float:
        """Fraction of all images that nearly repeat another: where it is large, the images may only look alike."""
        near = sum(not leak.exact for leak in self.leaks)
        near += sum(len(group.items) - 1 for group in self.groups if not group.exact)
        return near / max(sum(sum(counts.values()) for counts in self.counts.values()), 1)

    @property
    def imbalance(self) -> float:
        """Training images of the largest class for one of the smallest that has any."""
        counts = [count for count in self.counts["train"].values() if count]
        return max(counts) / min(counts)

    @property
    def rare(self) -> dict[str, int]:
        """Classes with fewer than five training images, but some."""
        return {name: count for name, count in self.counts["train"].items() if 0 < count < FEWEST_IMAGES}

    @property
    def empty(self) -> list[str]:
        """Classes without training images."""
        return [name for name, count in self.counts["train"].items() if not count]

    @property
    def severe(self) -> bool:
        """Whether training would suffer: classes without images; unreadable images; leaks; the same image under several
        classes; more than 1 % of the training images repeated. What `to_leave_out` names mends all but the first.

        Imbalance, sizes, modes, and what the test split repeats are for the user to judge.
        """
        mendable = any(self.can_mend(group) for group in self.conflicts)
        faults = self.empty or self.unreadable or self.leaks or mendable
        return bool(faults or self.duplicate_fraction > MOST_DUPLICATES)

    def to_leave_out(self) -> dict[str, list[Item]]:
        """Images to leave out, by reason: of a leak the one nearer to the training, all images of a group of
        several classes, all but the largest of another group; exact copies first, near ones for themselves.

        Test and validation images stay, but for unreadable ones and leaks from val to test; unless the test split was
        drawn from the same folders, in which case the next draw would make leaks of its copies.
        """
        reasons: dict[str, list[Item]] = {"unreadable": [item for item, _ in self.unreadable]}
        for exact, nearly in ((True, ""), (False, "nearly ")):
            conflicts, duplicates = (
                [group for group in groups if group.exact == exact and self.can_mend(group)]
                for groups in (self.conflicts, self.duplicates)
            )
            reasons |= {
                f"{nearly}in a later split too": [leak.copy for leak in self.leaks if leak.exact == exact],
                f"{nearly}the same image under several classes": [item for group in conflicts for item in group.items],
                f"{nearly}repeats another image": [item for group in duplicates for item in group.items[1:]],
            }
        return {reason: items for reason, items in reasons.items() if items}

    def can_mend(self, group: Group) -> bool:
        """Whether images of the group may be left out; a given test split stays as it is."""
        return self.drawn or group.items[0].split == "train"

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "severe": self.severe,
            "counts": self.counts,
            "unreadable": [_plain(item) | {"reason": reason} for item, reason in self.unreadable],
            "leaks": [
                {"copy": _plain(copy), "original": _plain(original), "exact": exact}
                for copy, original, exact in self.leaks
            ],
            "conflicts": [_plain_group(group) for group in self.conflicts],
            "duplicates": [_plain_group(group) for group in self.duplicates],
            "imbalance": self.imbalance,
            "rare_classes": self.rare,
            "odd_sizes": [_plain(item) | {"width": width, "height": height} for item, width, height in self.odd_sizes],
            "badly_scaled": [_plain(item) | scale._asdict() for item, scale in self.badly_scaled],
            "modes": self.modes,
            "ignored_files": self.ignored,
            "notes": list(self.notes),
            "empty_classes": self.empty,
            "leave_out": {reason: [item.name for item in items] for reason, items in self.to_leave_out().items()},
        }


def _plain(item: Item) -> dict[str, Any]:
    return {"split": item.split, "image": item.name, "class": item.label}


def _plain_group(group: Group) -> dict[str, Any]:
    return {"images": [_plain(item) for item in group.items], "exact": group.exact}


def check(splits: Splits, workers: int | None = None, progress: bool = True, drawn: bool = False) -> Findings:
    """Read every image once, compare them all, and say what is wrong.

    Near copies are resized, recompressed, brighter or darker ones of images that are not flat, and of which the larger
    has at least 32 px; not mirrored or rotated ones, or crops.

    Args:
        workers: processes that read; None chooses by the data and the machine. The result does not depend on it.
        progress: whether to show bars on a terminal.
        drawn: as in `Findings`.

    Raises:
        UserError: a source that cannot be read at all, or a process that reads was killed.
    """
    images = _Images(splits)
    readings, reasons = read_all(images.sources, workers, progress)

    def confirm(one: int, other: int) -> bool:
        return same_in_detail(images.load(one), images.load(other))

    copies = find_copies(
        readings,
        images.split_indices,
        confirm,
        lambda blocks: tracked(blocks, len(blocks), "comparing images", progress),
    )

    def exact(indices: list[int]) -> bool:
        return len(set(readings["digest"][indices].tolist())) == 1

    modes = Counter(mode.decode() for mode in readings["mode"][readings["readable"]].tolist())
    pairs = [(index, original) for index, original in enumerate(copies.across.tolist()) if original >= 0]
    members: dict[int, list[int]] = {}
    for index, original in enumerate(copies.within.tolist()):
        if original >= 0:
            members.setdefault(original, [original]).append(index)
    return Findings(
        counts=images.counts(),
        unreadable=[(images.item(index), reason) for index, reason in reasons.items()],
        leaks=[Leak(images.item(one), images.item(other), exact([one, other])) for one, other in pairs],
        groups=[Group(tuple(map(images.item, group)), exact(group)) for group in members.values()],
        odd_sizes=_odd_sizes(readings, images),
        badly_scaled=_badly_scaled(readings, images),
        modes={} if len(modes) == 1 and not modes.keys().isdisjoint({"RGB", "L"}) else dict(modes.most_common()),
        ignored=_ignored(images.sources),
        notes=splits.notes,
        tiny=_median_size(readings) < SMALLEST_SIZE,
        drawn=drawn,
    )


class _Images:
    """The images of all splits, numbered through."""

    def __init__(self, splits: Splits) -> None:
        self.classes = splits.classes
        val = None if splits.val is splits.test else splits.val
        self.sources = [source for source in (splits.train, val, splits.test) if source is not None]
        self.names = ["train", splits.test_name] if val is None else ["train", "val", "test"]
        sizes = [len(source) for source in self.sources]
        self.split_indices = np.repeat(np.arange(len(sizes)), sizes)
        self.starts = np.cumsum([0, *sizes])

    def item(self, index: int) -> Item:
        split = int(self.split_indices[index])
        source, number = self.sources[split], index - int(self.starts[split])
        return Item(self.names[split], number, source.image_name(number), self.classes[source.targets[number]])

    def load(self, index: int) -> Image.Image:
        split = int(self.split_indices[index])
        return self.sources[split].load(index - int(self.starts[split]))

    def counts(self) -> dict[str, dict[str, int]]:
        counts = (np.bincount(source.targets, minlength=len(self.classes)).tolist() for source in self.sources)
        return {name: dict(zip(self.classes, each, strict=True)) for name, each in zip(self.names, counts, strict=True)}


def _median_size(readings: NDArray[np.void]) -> float:
    read = readings[readings["readable"]]
    return float(np.median(np.minimum(read["width"], read["height"]))) if len(read) else 0.0


def _odd_sizes(readings: NDArray[np.void], images: _Images) -> list[tuple[Item, int, int]]:
    shorter = np.minimum(readings["width"], readings["height"]).astype(float)
    longer = np.maximum(readings["width"], readings["height"]).astype(float)
    usual = _median_size(readings)
    odd = (shorter < SMALLEST_PIXELS) | (longer > ODD_RATIO * shorter)
    odd |= (shorter * ODD_RATIO < usual) | (shorter > ODD_RATIO * usual)
    indices = np.flatnonzero(odd & readings["readable"]).tolist()
    return [(images.item(index), int(readings["width"][index]), int(readings["height"][index])) for index in indices]


def _badly_scaled(readings: NDArray[np.void], images: _Images) -> list[tuple[Item, Scale]]:
    bad = (readings["largest"] < DARKEST * readings["white"]) | (readings["clipped"] > MOST_CLIPPED)
    scales = readings[list(Scale._fields)]
    return [(images.item(index), Scale(*scales[index].tolist())) for index in np.flatnonzero(bad).tolist()]


def _ignored(sources: list[ImageSource]) -> dict[str, int]:
    listings = {id(source.left_out): source.left_out.counts for source in sources if isinstance(source, FileSource)}
    return dict(sum(listings.values(), Counter[str]()).most_common())
