"""Images on which two contenders disagree."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnext.comparison.measured import images_of
from convnext.comparison.results import Result, common_seeds
from convnext.data.sources import ImageSource
from convnext.output import counted

_SHOWN, _PIXELS = 12, 144  # images in each direction, and their longer sides at most


@dataclass(frozen=True)
class Shown:
    """An image that one contender gets right and the other takes for something else.

    Attributes:
        name: of its file, or its number.
        source: a ``data:`` address.
        true: its class.
        taken_for: the other's class.
        odds: both contenders' probabilities of the true class, in words.
    """

    name: str
    source: str
    true: str
    taken_for: str
    odds: str


@dataclass(frozen=True)
class Disagreement:
    """The images that ``better`` gets right and ``other`` wrong, with every seed: how many, and some of them."""

    better: str
    other: str
    count: int
    shown: list[Shown]
    seeds: int

    @property
    def title(self) -> str:
        """Of the pictures."""
        return f"{self.better} is right, {self.other} is wrong"

    @property
    def note(self) -> str:
        """What they are."""
        always = "" if self.seeds == 1 else f" with each of {self.seeds} seeds"
        some = f"; the {len(self.shown)} whose probability of the true class differs most" if self.shown else ""
        return f"{counted(self.count, 'image')}{always}{some}."


def disagreement(better: Result, other: Result, sources: dict[int, ImageSource]) -> Disagreement:
    """Where the first is right and the second is wrong, most different in confidence first; ``sources`` has the test
    images by fold, and gets those that it lacks.

    Raises:
        DataError: the images are not there any more.
    """
    seeds = common_seeds(better, other)
    ours, theirs = ([seed[index] for seed in seeds] for index in (0, 1))
    chosen = better.correct(ours).all(0) & ~other.correct(theirs).any(0)
    confident, doubtful = better.confidence(ours), other.confidence(theirs)
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(doubtful[rows] - confident[rows], kind="stable")][:_SHOWN]
    repeat = next(repeat for repeat in other.repeats if repeat.seed == theirs[0])
    starts = np.cumsum([0, *(len(run.targets) for run in repeat.runs)])
    shown = []
    for row in rows.tolist():
        fold = int(np.searchsorted(starts, row, "right")) - 1
        run, number = repeat.runs[fold], row - int(starts[fold])
        if fold not in sources:
            sources[fold] = images_of(run.run)
        source, index, names = sources[fold], int(run.indices[number]), run.info.classes
        shown.append(
            Shown(
                Path(source.image_name(index)).name,
                _address(source, index),
                names[run.targets[number]],
                names[int(run.probabilities[number].argmax())],
                f"{100 * confident[row]:.0f} % against {100 * doubtful[row]:.0f} %",
            )
        )
    return Disagreement(better.name, other.name, int(chosen.sum()), shown, len(seeds))


def _address(source: ImageSource, index: int) -> str:
    image, buffer = source.load(index), io.BytesIO()
    image.thumbnail((_PIXELS, _PIXELS))
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
