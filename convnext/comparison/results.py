"""From cells to contenders: what each is called, its runs by seed, and their numbers together."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from convnext.comparison.cell import Cell
from convnext.comparison.measured import Measured
from convnext.comparison.statistics import (
    Pair,
    detectable_difference,
    enough_resamples,
    holm,
    paired_difference,
)
from convnext.errors import DataError, SettingsError
from convnext.evaluation.calibration import expected_calibration_error
from convnext.evaluation.metrics import Report, compute_report

CONFIDENCE = 0.95  # of every interval in a report


@dataclass(frozen=True)
class Repeat:
    """A contender trained once with a seed: one run, or with folds one for each, whose test images are put together."""

    seed: int
    runs: tuple[Measured, ...]

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``(images,)``."""
        return np.concatenate([run.correct for run in self.runs])

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """``(images,)``: the probability of the true class."""
        return np.concatenate([run.probabilities[np.arange(len(run.targets)), run.targets] for run in self.runs])

    @cached_property
    def report(self) -> Report:
        """The metrics over all its test images."""
        if len(self.runs) == 1:
            return self.runs[0].report
        logits, targets = torch.cat([run.logits for run in self.runs]), np.concatenate([r.targets for r in self.runs])
        return compute_report(logits, torch.from_numpy(targets), self.runs[0].info.classes)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """``(images, K)``."""
        return np.concatenate([run.probabilities for run in self.runs])

    @property
    def calibrated(self) -> NDArray[np.float64] | None:
        """``(images, K)`` after temperature scaling; None where a run has no temperature."""
        each = [run.calibrated for run in self.runs if run.calibrated is not None]
        return np.concatenate(each) if len(each) == len(self.runs) else None

    @cached_property
    def ece(self) -> float:
        """The expected calibration error, a fraction."""
        return float(expected_calibration_error(self.probabilities, self.correct))

    @cached_property
    def ece_calibrated(self) -> float | None:
        """The same after temperature scaling."""
        return None if self.calibrated is None else float(expected_calibration_error(self.calibrated, self.correct))


class Spread(NamedTuple):
    """Numbers of several seeds: their mean, and with two or more seeds their standard deviation and the interval of the
    mean (Student's t)."""

    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Result:
    """What is compared: its name and its repeats, by seed; see `gather`."""

    name: str
    repeats: tuple[Repeat, ...]

    @property
    def runs(self) -> list[Measured]:
        """Of all seeds and folds."""
        return [run for repeat in self.repeats for run in repeat.runs]

    def over_seeds(self, number: Callable[[Repeat], float | None]) -> Spread | None:
        """The spread of a number of each seed; None where one of them has none."""
        values = [number(repeat) for repeat in self.repeats]
        known = [value for value in values if value is not None]
        return spread(known) if len(known) == len(values) else None

    @cached_property
    def top1(self) -> float:
        """The mean over the seeds."""
        return float(np.mean([repeat.report.top1 for repeat in self.repeats]))

    @cached_property
    def recall(self) -> NDArray[np.float64]:
        """``(K,)``: the fraction of each class that is right, in the mean over the seeds."""
        each = [[row["recall"] for row in repeat.report.per_class.values()] for repeat in self.repeats]
        means: NDArray[np.float64] = np.mean(each, axis=0)
        return means

    def correct(self, seeds: Sequence[int]) -> NDArray[np.bool_]:
        """``(seeds, images)``, of those seeds."""
        return np.stack([repeat.correct for repeat in self.repeats if repeat.seed in seeds])

    def confidence(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """``(images,)``: the mean probability of the true class."""
        mean: NDArray[np.float64] = np.mean([r.confidence for r in self.repeats if r.seed in seeds], axis=0)
        return mean


def spread(values: Sequence[float]) -> Spread:
    """Of at least one number."""
    from scipy import stats

    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Spread(mean, None, None, None)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / count**0.5
    return Spread(mean, std, mean - half, mean + half)


def names(cells: Sequence[Cell]) -> list[str]:
    """What each cell's contender is called: its model, and those settings that not all cells of the model have
    alike."""
    called = []
    for cell in cells:
        rows = [other.settings for other in cells if other.model == cell.model]
        keys = [key for key in cell.settings if len({_asked(row, key) for row in rows}) > 1]
        called.append(" ".join([cell.model, *(f"{key}={_text(cell.settings[key])}" for key in keys)]))
    return called


def _asked(settings: Mapping[str, object], key: str) -> str | None:
    """A setting's value, which may be None, as text; None where it is not among the settings."""
    return json.dumps(settings[key], default=str) if key in settings else None


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def gather(cells: Sequence[Cell], measured: Sequence[Measured | None]) -> list[Result]:
    """The contenders that have a whole repeat, that is a run of each fold that there is, best first.

    Args:
        cells: all of the comparison, done or not.
        measured: what is known of each; None of one that is not done.

    Raises:
        SettingsError: two runs of a contender with one seed and fold.
        DataError: runs that were tested on different images, or of one contender trained on different ones.
    """
    folds = sorted({cell.fold for cell in cells}, key=lambda fold: -1 if fold is None else fold)
    grouped: dict[str, dict[tuple[int, int | None], Measured]] = {}
    for name, cell, run in zip(names(cells), cells, measured, strict=True):
        if run is None:
            continue
        runs, key = grouped.setdefault(name, {}), (cell.seed, cell.fold)
        if key in runs:
            raise SettingsError(
                f"{runs[key].run} and {run.run} are both of {name} with seed {cell.seed}: leave one of them out"
            )
        runs[key] = run
    whole = []
    for name, runs in grouped.items():
        _check_same_training(name, runs)
        seeds = [seed for seed in sorted({seed for seed, _ in runs}) if all((seed, fold) in runs for fold in folds)]
        if seeds:
            repeats = (Repeat(seed, tuple(runs[seed, fold] for fold in folds)) for seed in seeds)
            whole.append(Result(name, tuple(repeats)))
    _check_same_images(whole)
    return sorted(whole, key=lambda contender: -contender.top1)


def _check_same_training(name: str, runs: Mapping[tuple[int, int | None], Measured]) -> None:
    """That seeds of a contender differ in nothing but the seed."""
    first: dict[int | None, Measured] = {}
    for (_, fold), run in runs.items():
        other = first.setdefault(fold, run)
        if other.trained_on != run.trained_on:
            raise DataError(
                f"{other.run} and {run.run} are both of {name} and were trained on different images, so they are no "
                f"seeds of one contender: leave one of them out, or train it again on the same images"
            )


def _check_same_images(whole: Sequence[Result]) -> None:
    every = [repeat for contender in whole for repeat in contender.repeats]
    for repeat in every:
        for run, first in zip(repeat.runs, every[0].runs, strict=True):
            same = run.fingerprint == first.fingerprint and np.array_equal(run.indices, first.indices)
            if not same or run.info.classes != first.info.classes:
                raise DataError(
                    f"{first.run} and {run.run} were tested on different images ({len(first.targets):,} and "
                    f"{len(run.targets):,}), so they cannot be compared: train both on the same data and splits"
                )


def common_seeds(a: Result, b: Result) -> list[tuple[int, int]]:
    """The seeds of two contenders that are compared with each other: those that both have; where they have none in
    common, for a seed is nothing but a number, the first of each in turn."""
    ours, theirs = ([repeat.seed for repeat in contender.repeats] for contender in (a, b))
    both = [(seed, seed) for seed in ours if seed in theirs]
    return both or list(zip(ours, theirs, strict=False))


def pairwise(
    results: Sequence[Result],
) -> tuple[dict[tuple[str, str], Pair], dict[tuple[str, str], float]]:
    """Each two results, in their order, by their names: how they differ, as one family of tests; and the smallest true
    difference that is likely to be significant, as Holm's first step asks it."""
    pairs, detectable = dict[tuple[str, str], Pair](), dict[tuple[str, str], float]()
    family = max(1, math.comb(len(results), 2))
    confidence, resamples = 1 - (1 - CONFIDENCE) / family, enough_resamples(family, 1 - CONFIDENCE)
    for a, b in combinations(results, 2):
        ours, theirs = zip(*common_seeds(a, b), strict=True)
        both = a.correct(ours), b.correct(theirs)
        pairs[a.name, b.name] = paired_difference(*both, confidence=CONFIDENCE, resamples=resamples)
        detectable[a.name, b.name] = detectable_difference(*both, confidence=confidence)
    return dict(zip(pairs, holm(list(pairs.values()), 1 - CONFIDENCE), strict=True)), detectable
