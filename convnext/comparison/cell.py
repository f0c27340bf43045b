"""A cell of a comparison: one training of one contender."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One training of a comparison, done or not.

    Attributes:
        model: what the contender is called.
        settings: what varies between the contenders, by dotted name.
        seed: the contenders' runs with the same seed (and fold) are paired.
        fold: which of the parts of a small data set is tested on, from 0; None without folds.
        run: the finished run's folder; None where it failed or is not done.
        problem: why there is no finished run, in one line; None where there is one, or it is only not done yet.
    """

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    fold: int | None = None
    run: Path | None = None
    problem: str | None = None
