"""The run's pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convnext.data.sources import ImageSource
from convnext.evaluation.metrics import confusion
from convnext.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convnext.evaluation.evaluator import Predictions

BLUE, ORANGE, RED = "#1f6fb4", "#e07b22", "#b3261e"


def new_figure(**options: Any) -> "Figure":
    """A figure without a display; the options are matplotlib's."""
    from matplotlib.figure import Figure  # without pyplot, which has global state

    return Figure(layout="constrained", **options)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with writing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def curves(history: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy of training and validation over the epochs.

    Args:
        history: the lines of ``metrics.jsonl``.
        path: PNG to write.
        title: what was trained.
    """
    figure = new_figure(figsize=(10, 4))
    figure.suptitle(title, parse_math=False)
    for axes, name, label in zip(
        figure.subplots(1, 2), ("loss", "top1"), ("cross-entropy", "top-1 accuracy"), strict=True
    ):
        for part, color in (("train", BLUE), ("val", ORANGE)):
            points = [(line["epoch"], line[f"{part}_{name}"]) for line in history if f"{part}_{name}" in line]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", color=color, label=part)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def confusion_matrix(predictions: "Predictions", classes: Sequence[str], path: Path) -> None:
    """Counts by true and predicted class, coloured by the share of the true class."""
    counts = confusion(predictions.logits, predictions.targets).numpy()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(0.5 * len(classes) + 2, 5, 24))
    figure = new_figure(figsize=(side, side))
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{np.trace(counts):,} of {counts.sum():,} right")
    if len(classes) <= 60:
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes, rotation=90, parse_math=False)
        axes.set_yticks(ticks, classes, parse_math=False)
    if len(classes) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def prediction_grid(
    predictions: "Predictions", source: ImageSource, classes: Sequence[str], path: Path, count: int = 32
) -> None:
    """Images spread evenly over the split, each with its predicted class, and the true one where that is another."""
    shown = np.linspace(0, len(predictions.targets) - 1, min(count, len(predictions.targets))).astype(int)
    probabilities = predictions.logits.softmax(1)
    columns = 8
    rows = -(-len(shown) // columns)
    figure = new_figure(figsize=(columns * 1.6, rows * 1.9))
    for axes, index in zip(figure.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
        image = source.load(int(predictions.indices[index]))
        axes.imshow(image, cmap="gray" if image.mode == "L" else None)
        guess, truth = int(probabilities[index].argmax()), int(predictions.targets[index])
        label = f"{classes[guess]}: {100 * probabilities[index, guess]:.0f} %"
        wrong = guess != truth
        text = f"{label}\nis {classes[truth]}" if wrong else label
        axes.set_title(text, fontsize=8, color=RED if wrong else "black", parse_math=False)
    for axes in figure.axes:
        axes.axis("off")
    save_figure(figure, path)
