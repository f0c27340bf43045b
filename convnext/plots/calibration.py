"""Reliability diagrams: how often a model is right by how sure it is."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext.plots.style import BLUE, GREY, new_figure, save_figure


def reliability_diagram(
    edges: NDArray[np.float64], panels: Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]], path: Path
) -> None:
    """Write a PNG of panels, each the accuracy in bins of the predicted class's probability, over the fraction of the
    images in each.

    Args:
        edges: ``(bins + 1,)`` of the bins.
        panels: title to accuracies ``(bins,)``, nan in an empty bin, and images ``(bins,)``.
        path: PNG to write.
    """
    figure = new_figure(figsize=(4.2 * len(panels), 5))
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (title, (accuracy, counts)), (above, below) in zip(panels.items(), axes.T, strict=True):
        above.stairs(np.nan_to_num(accuracy), edges, fill=True, color=BLUE)
        above.plot((0, 1), (0, 1), color=GREY, ls="--", label="as often right as sure")
        above.set(title=title, xlim=(0, 1), ylim=(0, 1))
        below.stairs(counts / counts.sum(), edges, fill=True, color=GREY)
        below.set(xlabel="probability of the predicted class")
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].legend(loc="upper left")
    axes[1, 0].set_ylabel("images")
    save_figure(figure, path)
