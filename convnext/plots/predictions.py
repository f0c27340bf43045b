"""What a model predicted: the confusion matrix, and images with their predicted classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.plots.style import BLUE, GREY, RED, fit_texts, labels, new_figure, save_figure, shortened, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AS_GIVEN, _COUNTED, _NAMED, _DRAWN = 30, 60, 120, 1000  # classes up to which they keep their order, and so on
_COLUMNS = 8  # images side by side
_WIDTH, _HEIGHT, _SIDE = 1.9, 2.6, 1.6  # of an image with its texts, and of the image, in inches
_LARGE = 3.2  # of an image that is drawn alone, and of the bars beside it, in inches
_PAIRS = 20  # confused classes in words


def confusion_matrix(
    confusion: Mapping[str, Mapping[str, int]],
    most_confused: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Write a PNG of the images by true class (rows) and predicted class (columns), coloured by fraction of the row.

    More than 30 classes are put into an order in which those that are confused stand together, with the pairs that are
    confused most in words; of more than 1,000 those with the most mistakes are drawn.

    Args:
        confusion: images by true and predicted class, without zeros.
        most_confused: pairs of classes, with ``true``, ``predicted``, ``count`` and ``support``, worst first.
        class_names: ``K`` names.
        path: PNG to write.
    """
    rows = {true: confusion.get(true, {}) for true in class_names}
    right, total = sum(row.get(true, 0) for true, row in rows.items()), sum(sum(row.values()) for row in rows.values())
    names = sorted(rows, key=lambda true: rows[true].get(true, 0) - sum(rows[true].values()))[:_DRAWN]
    names = [name for name in class_names if name in set(names)]
    counts = np.array([[rows[true].get(predicted, 0) for predicted in names] for true in names])
    title = f"{right:,} of {total:,} right ({100 * right / max(total, 1):.2f} %)"
    if len(names) > _AS_GIVEN:
        order = confused_together(_fractions(counts))
        counts, names = counts[np.ix_(order, order)], [names[index] for index in order]
        some = "" if len(names) == len(class_names) else f"the {len(names):,} with the most mistakes, "
        title += f"; {len(class_names):,} classes, {some}in an order in which those confused stand together"
    figure = new_figure(figsize=2 * [float(np.clip(0.4 * len(names), 3.5, 16))], layout=None)
    axes = figure.add_axes((0, 0, 1, 1))  # the texts around it are added to the picture when it is written
    axes.set_title(title, fontsize=12)
    _draw_matrix(axes, counts, names)
    if len(names) > _AS_GIVEN:
        short = dict(zip(class_names, labels(class_names, 36), strict=True))
        lines = [
            f"{pair['count']} of {pair['support']}  {short[pair['true']]}\n    as {short[pair['predicted']]}"
            for pair in most_confused[:_PAIRS]
        ]
        text = "\n\n".join(["confused most:", *lines])
        axes.text(1.02, 1, text, va="top", fontsize=9, transform=axes.transAxes)
    save_figure(figure, path)


def _fractions(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    fractions: NDArray[np.float64] = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return fractions


def confused_together(fractions: NDArray[np.float64]) -> NDArray[np.int64]:
    """An order of ``K`` classes in which those that are confused follow each other, from ``(K, K)`` fractions."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    likeness = fractions + fractions.T
    np.fill_diagonal(likeness, 0)
    distances = 1 - likeness / max(likeness.max(), 1e-9)
    np.fill_diagonal(distances, 0)
    order: NDArray[np.int64] = leaves_list(linkage(squareform(distances), "average"))
    return order


def _draw_matrix(axes: "Axes", counts: NDArray[np.int64], names: Sequence[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, PowerNorm

    fractions = _fractions(counts)
    blues = ListedColormap(colormaps["Blues"](np.linspace(0.2, 1, 256)))  # so that every mistake can be seen
    some = np.ma.masked_equal(100 * fractions, 0)
    image = axes.imshow(some, cmap=blues, norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    scale = axes.inset_axes((1.02, 0, 0.025, 0.25))
    axes.figure.colorbar(image, cax=scale, label="% of the true class").ax.tick_params(labelsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    every = 1 if len(names) <= _NAMED else -(-len(names) // (_NAMED // 2))
    ticks = range(0, len(names), every)
    shown = labels(names, 28)[::every]
    fontsize = 9 if len(names) <= _COUNTED else 7
    axes.set_xticks(ticks, shown, rotation=90, fontsize=fontsize)
    axes.set_yticks(ticks, shown, fontsize=fontsize)
    if len(names) <= _COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if fractions[row, column] > 0.3 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)


@dataclass(frozen=True)
class PredictedImage:
    """An image with what a model takes it for: names of the true and the predicted class, and its probability. The true
    one is None where it is not known."""

    image: Image.Image
    name: str
    true: str | None
    predicted: str
    probability: float


def prediction_picture(image: Image.Image, name: str, classes: Sequence[tuple[str, float]], path: Path) -> None:
    """Write a PNG of an image beside its most probable classes, each with its probability as a bar.

    Args:
        image: in mode ``RGB`` or ``L``.
        name: what to call it.
        classes: names and probabilities, best first.
        path: PNG to write.
    """
    height = max(_LARGE, 0.55 * len(classes))
    figure = new_figure(figsize=(2 * _LARGE + 0.3, height), layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 2 * _LARGE + 0.3), ylim=(height, 0))  # in inches, from the top
    axes.axis("off")
    _draw_image(axes, image, _LARGE / 2, height / 2, _LARGE)
    axes.text(0, -0.1, shortened(name, 80), va="bottom", fontsize=9, color=GREY)
    left = _LARGE + 0.3
    for number, (class_name, probability) in enumerate(classes):
        top = 0.55 * number + (height - 0.55 * len(classes)) / 2
        axes.text(left, top + 0.22, wrapped(class_name, 44, lines=1), va="bottom", fontsize=9)
        axes.text(left + _LARGE, top + 0.22, f"{100 * probability:.1f} %", ha="right", va="bottom", fontsize=9)
        axes.barh(top + 0.34, _LARGE, 0.16, left=left, color="#eeeeee")
        axes.barh(top + 0.34, _LARGE * probability, 0.16, left=left, color=BLUE)
    axes.set(xlim=(0, 2 * _LARGE + 0.3), ylim=(height, 0), aspect="equal")
    save_figure(figure, path)


def _draw_image(axes: "Axes", image: Image.Image, x: float, y: float, longer: float) -> None:
    """The image around a point, its longer side as given, on axes of inches from the top."""
    width, height = (longer * side / max(image.size) for side in image.size)
    extent = (x - width / 2, x + width / 2, y + height / 2, y - height / 2)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent)


def prediction_grid(shown: Sequence[PredictedImage], title: str, path: Path) -> None:
    """Write a PNG of images, each with its predicted class, the true one where that is known and another, and its
    file's name."""
    rows = -(-len(shown) // _COLUMNS)
    size = (_COLUMNS * _WIDTH, rows * _HEIGHT + 0.3)
    figure = new_figure(figsize=size, layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))  # in inches, from the top
    axes.axis("off")
    axes.text(size[0] / 2, 0.1, title, ha="center", va="top", fontsize=12)
    for number, one in enumerate(shown):
        row, column = divmod(number, _COLUMNS)
        middle, top = (column + 0.5) * _WIDTH, row * _HEIGHT + 1.05
        _draw_image(axes, one.image, middle, top + _SIDE / 2, _SIDE)
        wrong = one.true not in (None, one.predicted)
        text = f"{wrapped(one.predicted, 24)}: {100 * one.probability:.0f} %"
        if wrong:
            text += "\n" + wrapped(f"is {one.true}", 26)
        above = axes.text(middle, top - 0.05, text, ha="center", va="bottom", fontsize=8)
        above.set_color(RED if wrong else "black")
        name, below = shortened(one.name, 30), top + _SIDE + 0.05
        axes.text(middle, below, name, ha="center", va="top", fontsize=7, color=GREY)
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="equal")
    fit_texts(figure, axes.texts[1:], 0.97 * _WIDTH)
    save_figure(figure, path)
