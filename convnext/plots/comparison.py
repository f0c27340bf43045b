"""Pictures of a comparison: accuracy against what it costs, differences, calibration, classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnext.plots.style import GREY, SERIES, labels, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AXES = (("epochs", 1.0, "epochs"), ("minutes", 1.0, "minutes of training"), ("flops", 1e-12, "TFLOP of training"))
_CLASSES = 12  # in each direction
_WIDTH = 34  # columns of a name


@dataclass(frozen=True)
class Curve:
    """How well a contender did on the validation split, in the mean over its runs, and the least and most of them:
    arrays ``(epochs,)``, with what that had cost."""

    name: str
    epochs: NDArray[np.float64]
    minutes: NDArray[np.float64]
    flops: NDArray[np.float64]
    top1: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """By how much the accuracy of one contender is above another's, with its interval: fractions."""

    better: str
    other: str
    difference: float
    low: float
    high: float
    significant: bool


@dataclass(frozen=True)
class Reliability:
    """A contender's predictions in bins by confidence: mean confidence and accuracy ``(2, bins)``, as they are, and
    after temperature scaling where there is a temperature."""

    name: str
    plain: NDArray[np.float64]
    calibrated: NDArray[np.float64] | None


def color(number: int) -> str:
    """Of a contender, by its rank."""
    return SERIES[number % len(SERIES)]


def accuracy(curves: Sequence[Curve]) -> "Figure":
    """Validation accuracy against epochs, time and arithmetic, a panel each; the band is from the worst to the best
    run."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(figsize=(11, 4))
    for axes, (name, scale, label) in zip(figure.subplots(1, len(_AXES), sharey=True), _AXES, strict=True):
        for number, curve in enumerate(curves):
            x, style = scale * getattr(curve, name), "-" if number < len(SERIES) else "--"
            axes.plot(x, 100 * curve.top1, style, marker=".", color=color(number), label=curve.name)
            axes.fill_between(x, 100 * curve.low, 100 * curve.high, color=color(number), alpha=0.15, linewidth=0)
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("validation top-1, %")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, names = figure.axes[0].get_legend_handles_labels()
    names = labels(names, _WIDTH)
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), frameon=False)
    return figure


def differences(intervals: Sequence[Interval]) -> "Figure":
    """Each difference with its interval, a row each; one that is significant is filled."""
    figure = new_figure(figsize=(8, 1.2 + 0.5 * len(intervals)))
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linewidth=1)
    for row, one in enumerate(intervals):
        axes.plot((100 * one.low, 100 * one.high), (row, row), color=SERIES[0], linewidth=2)
        face = SERIES[0] if one.significant else "none"
        axes.plot(100 * one.difference, row, "o", color=SERIES[0], mfc=face, markersize=7, mew=1.5)
    names = ("\nagainst ".join(labels([one.better, one.other], _WIDTH)) for one in intervals)
    axes.set_yticks(range(len(intervals)), list(names), fontsize=9)
    axes.set(xlabel="difference of top-1, percentage points", ylim=(len(intervals) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    return figure


def reliability(contenders: Sequence[Reliability]) -> "Figure":
    """Accuracy against confidence, a panel for each contender: on the diagonal it is as sure as it is right."""
    columns = min(3, len(contenders))
    rows = -(-len(contenders) // columns)
    figure = new_figure(figsize=(3.6 * columns, 3.5 * rows + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for number, (axes, one) in enumerate(zip(panels, contenders, strict=False)):
        axes.plot((0, 100), (0, 100), color=GREY, linewidth=1, linestyle=":")
        axes.plot(*(100 * one.plain), marker="o", markersize=4, color=color(number), label="as it is")
        if one.calibrated is not None:
            axes.plot(
                *(100 * one.calibrated), "--", marker="s", markersize=3, mfc="none", color=color(number),
                label="temperature-scaled",
            )  # fmt: skip
        axes.set_title(labels([one.name], _WIDTH)[0], fontsize=10)
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence, %", ylabel="right, %")
        axes.label_outer()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    for axes in list(figure.axes)[len(contenders) :]:
        axes.axis("off")
    return figure


def classes(names: Sequence[str], gains: NDArray[np.float64], better: str, other: str) -> "Figure":
    """Bars of the classes ``(K,)`` in which two contenders differ most, in each direction, by accuracy of the first
    less that of the second."""
    order = np.argsort(-gains, kind="stable")
    some = order if len(order) <= 2 * _CLASSES else np.concatenate([order[:_CLASSES], order[-_CLASSES:]])
    figure = new_figure(figsize=(8, 1.4 + 0.26 * len(some)))
    axes = figure.subplots()
    colors = [SERIES[0] if gains[index] >= 0 else SERIES[1] for index in some]
    axes.barh(range(len(some)), 100 * gains[some], color=colors)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(some)), labels([names[index] for index in some], _WIDTH), fontsize=8)
    axes.set(ylim=(len(some) - 0.5, -0.5), xlabel="difference of the class's accuracy, percentage points")
    left, right = labels([other, better], _WIDTH)
    axes.set_title(f"← {left} better   |   {right} better →", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    return figure
