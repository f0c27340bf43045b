"""What a model predicted: the confusion matrix, and images with their predicted classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.plots.style import RED, new_figure, save_figure


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Write a PNG of the ``(K, K)`` counts by true class (rows) and predicted one, coloured by fraction of the row."""
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = float(np.clip(0.5 * len(class_names) + 2, 5, 24))
    figure = new_figure(figsize=(size, size))
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{np.trace(counts):,} of {counts.sum():,} right")
    if len(class_names) <= 60:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=90, parse_math=False)
        axes.set_yticks(ticks, class_names, parse_math=False)
    if len(class_names) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def prediction_grid(
    images: Sequence[Image.Image],
    labels: Sequence[int],
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Write a PNG of ``n`` images, each with its predicted class, by ``(n, K)`` probabilities, and the true one where
    that is another."""
    columns = 8
    rows = -(-len(images) // columns)
    figure = new_figure(figsize=(columns * 1.6, rows * 1.9))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, image, label, predicted in zip(panels, images, labels, probabilities, strict=False):
        axes.imshow(image, cmap="gray" if image.mode == "L" else None)
        guess = int(predicted.argmax())
        text = f"{class_names[guess]}: {100 * predicted[guess]:.0f} %"
        if guess != label:
            text += f"\nis {class_names[label]}"
        axes.set_title(text, fontsize=8, color=RED if guess != label else "black", parse_math=False)
    for axes in figure.axes:
        axes.axis("off")
    save_figure(figure, path)
