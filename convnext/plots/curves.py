"""Curves over the epochs: loss and accuracy of runs, and the learning rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convnext.config import RunSettings
from convnext.data.resizing import sizes_by_epoch
from convnext.plots.style import BLUE, ORANGE, RED, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 2000  # of a learning rate's curve: as many as a picture can show


def curves(
    history: Sequence[dict[str, Any]],
    path: Path,
    title: str,
    best_step: int | None = None,
    test: Mapping[str, float] | None = None,
    test_name: str = "test",
) -> None:
    """Write a PNG of loss and accuracy of training and validation over the epochs.

    Args:
        history: the lines of ``metrics.jsonl``.
        path: PNG to write.
        title: of the picture.
        best_step: the step whose epoch is marked as the best; None for none.
        test: ``loss`` and ``top1`` on the split called ``test_name``, and the ``epoch`` whose weights have them; None
            while there are none.
    """
    figure, panels = _loss_and_accuracy()
    figure.suptitle(title)
    for name, axes in panels.items():
        for split, color in (("train", BLUE), ("val", ORANGE)):
            _draw_curve(axes, history, f"{split}_{name}", color=color, label=split)
        best = [line for line in history if line["step"] == best_step and f"val_{name}" in line]
        if best:
            label = f"best: epoch {best[0]['epoch']}, {_text(name, best[0][f'val_{name}'])}"
            _draw_curve(
                axes, best, f"val_{name}", color=ORANGE, marker="o", markersize=8, ls="", mfc="none", label=label
            )
        if test is not None:
            label = f"{test_name}: {_text(name, test[name])}"
            _draw_curve(axes, [dict(test)], name, color=RED, marker="*", markersize=10, ls="", label=label)
        axes.legend()
    save_figure(figure, path)


def compare(histories: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """Write a PNG of loss and accuracy of several runs over the epochs: a colour a run, validation solid, training
    dashed. ``histories`` has, by what each run is to be called, the lines of its ``metrics.jsonl``."""
    from matplotlib.lines import Line2D

    figure, panels = _loss_and_accuracy()
    lines = [Line2D([], [], color="grey", label="validation"), Line2D([], [], color="grey", ls="--", label="training")]
    for number, (run, history) in enumerate(histories.items()):
        color = f"C{number % 10}"
        lines.append(Line2D([], [], color=color, label=run))
        for name, axes in panels.items():
            _draw_curve(axes, history, f"val_{name}", color=color)
            _draw_curve(axes, history, f"train_{name}", color=color, linestyle="--", alpha=0.6)
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)


def _loss_and_accuracy() -> "tuple[Figure, dict[str, Axes]]":
    """An empty figure, and its two panels by what they show of ``metrics.jsonl``."""
    figure = new_figure(figsize=(10, 4))
    panels = dict(zip(("loss", "top1"), figure.subplots(1, 2), strict=True))
    for axes, label in zip(panels.values(), ("cross-entropy", "top-1 accuracy, %"), strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
    return figure, panels


def _draw_curve(axes: "Axes", history: Sequence[dict[str, Any]], name: str, **style: Any) -> None:
    """One number over the epochs that have it, where any has."""
    scale = 100 if name.endswith("top1") else 1
    points = [(line["epoch"], scale * line[name]) for line in history if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), **({"marker": "." if len(points) < 30 else ""} | style))


def _text(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name == "top1" else f"{value:.4f}"


def schedule(settings: RunSettings, steps_per_epoch: int, path: Path) -> None:
    """Write a PNG of the learning rate over the epochs, and of the size of the training images where that grows."""
    steps = np.unique(np.linspace(0, settings.epochs * steps_per_epoch - 1, _POINTS).round()).astype(int).tolist()
    rates = [settings.learning_rate(step, steps_per_epoch) for step in steps]
    figure = new_figure(figsize=(8, 4))
    figure.suptitle(settings.name)
    axes = figure.subplots()
    axes.plot([(step + 1) / steps_per_epoch for step in steps], rates, color=BLUE)
    axes.set(xlabel="epoch", xlim=(0, settings.epochs), ylim=(0, None))
    axes.set_ylabel("learning rate", color=BLUE)
    axes.grid(alpha=0.3)
    data = settings.data
    if data.first_size < data.last_size:
        sizes = sizes_by_epoch(data, settings.epochs)
        beside = axes.twinx()
        beside.stairs(sizes, range(settings.epochs + 1), baseline=None, color=ORANGE)
        beside.set_ylabel("side of the training images, px", color=ORANGE)
    save_figure(figure, path)
