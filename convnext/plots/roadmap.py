"""The paper's figure 2: accuracy over the steps of the roadmap, published and measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.plots.style import BLUE, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from convnext.models.roadmap import Step


def plot_roadmap(
    rows: "Sequence[Step]", path: Path, measured: Sequence[float | None] | None = None, dataset: str = "this data set"
) -> None:
    """Bars of accuracy for each step, first step on top, with the published multiply-adds beside the names.

    The measured bars have an axis of their own beside the published ones, since the two are not to be compared in
    height. Both axes start above zero, as the paper's does, so the accuracy is also written at each bar.

    Args:
        rows: steps of the roadmap.
        path: PNG to write.
        measured: top-1 accuracy of each row on ``dataset`` in percent, None where there is none.

    Raises:
        ValueError: ``measured`` and ``rows`` differ in length.
    """
    if measured is not None and len(measured) != len(rows):
        raise ValueError(f"measured must have one accuracy a row: got {len(measured)} for {len(rows)} rows")
    panels: list[tuple[Sequence[float | None], str, str]] = [
        ([row.imagenet_top1 for row in rows], BLUE, "ImageNet top-1, published")
    ]
    if measured is not None:
        panels.append((measured, ORANGE, f"measured on {dataset}"))
    figure = new_figure(figsize=(5 + 3.5 * len(panels), 1.8 + 0.32 * len(rows)))
    figure.suptitle("From ResNet-50 to ConvNeXt-T")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (values, color, label) in zip(all_axes, panels, strict=True):
        _bars(axes, rows, values, color, label)
    names = [f"{row.name}   {row.gflops:.2f} G" for row in rows]
    all_axes[0].set_yticks(range(len(rows)), names)
    all_axes[0].invert_yaxis()
    note = "G: multiply-adds at 224 px in 1e9, published. Hatched: not adopted by the paper."
    figure.legend(loc="outside lower center", ncols=len(panels), title=note, title_fontsize=8, frameon=False)
    save_figure(figure, path)


def _bars(axes: "Axes", rows: "Sequence[Step]", values: Sequence[float | None], color: str, label: str) -> None:
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 100.0)
    room = max(high - low, 1.0)
    rows_shown = [row for row, value in enumerate(values) if value is not None]
    bars = axes.barh(rows_shown, known, color=color, alpha=0.85, label=label)
    for row, value, bar in zip(rows_shown, known, bars, strict=True):
        if not rows[row].adopted:
            bar.set(hatch="//", edgecolor="white")
        axes.text(value, row, f" {value:.2f}", va="center", fontsize=8)
    axes.set(xlim=(max(low - 0.4 * room, 0), high + 0.25 * room), xlabel="top-1 accuracy, %")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
