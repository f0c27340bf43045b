"""The tables of a report, as texts for people with the numbers to sort them by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from convnext.comparison.cell import Cell
from convnext.comparison.conclusion import percent, points
from convnext.comparison.measured import BATCH, Measured
from convnext.comparison.results import Repeat, Result
from convnext.comparison.statistics import Pair
from convnext.output import counted
from convnext.runs.folder import CHANGES_RESULT, MAY_CHANGE, flatten

_MANY = 10  # rows that Markdown shows of a long table


class Entry(NamedTuple):
    """What stands in a table, and what it is sorted by; None to sort by the text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of a report: ``folded`` ones are opened by a click, and of ``rows`` Markdown shows ``most``."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    note: str = ""
    folded: bool = False
    most: int = 1000


_NUMBERS: dict[str, Callable[[Repeat], float | None]] = {
    "top-5": lambda repeat: repeat.report.top5,
    "macro-F1": lambda repeat: repeat.report.macro_f1,
    "ECE": lambda repeat: repeat.ece,
    "ECE, scaled": lambda repeat: repeat.ece_calibrated,
}


def quality(results: Sequence[Result]) -> Table:
    """How well the contenders do on the test images."""
    rows = []
    for result in results:
        top1 = result.over_seeds(lambda repeat: repeat.report.top1)
        assert top1 is not None
        interval = (
            ""
            if top1.low is None or top1.high is None
            else f"{max(0, 100 * top1.low):.2f} to {min(100, 100 * top1.high):.2f}"
        )
        row = [Entry(result.name), Entry(str(len(result.repeats)), len(result.repeats))]
        row += [Entry(percent(top1.mean), top1.mean)]
        row += [Entry("" if top1.std is None else f"{100 * top1.std:.2f}", top1.std), Entry(interval, top1.low)]
        for name, number in _NUMBERS.items():
            mean = None if (spread := result.over_seeds(number)) is None else spread.mean
            text = "" if mean is None else f"{mean:.4f}" if name == "macro-F1" else percent(mean)
            row.append(Entry(text, mean))
        rows.append(row)
    note = (
        "Means over the seeds, with the standard deviation between seeds in percentage points and the 95 % interval of "
        "the mean (Student's t). ECE: expected calibration error, as it is and after temperature scaling fitted on the "
        "validation split."
    )
    columns = ["contender", "seeds", "top-1", "std", "95 % interval, %", *_NUMBERS]
    return Table("How good", columns, rows, note)


_ALWAYS = ("epochs", "optimizer.name", "optimizer.lr", "batch_size", "precision")
# What tells runs apart, and models, whose own settings are their names'.
_LEFT_OUT = MAY_CHANGE - CHANGES_RESULT | {"recipe", "seed", "data.fold", "data.mean", "data.std"}


def trained_with(results: Sequence[Result]) -> Table:
    """The settings of each contender that are not alike in all of them, or that a reader looks for."""
    values = [[flatten(run.settings) for run in result.runs] for result in results]
    texts = [{name: _of_all(runs, name) for name in runs[0]} for runs in values]
    models = {runs[0]["model.name"] for runs in values}

    def is_shown(name: str) -> bool:
        own = name in _LEFT_OUT or (name.startswith("model.") and len(models) > 1)
        return name in _ALWAYS or (not own and len({text[name] for text in texts}) > 1)

    names = list(filter(is_shown, texts[0]))
    rows = [
        [Entry(result.name), *(Entry(text[name]) for name in names)]
        for result, text in zip(results, texts, strict=True)
    ]
    note = "Every other setting is the same for all; those of the model are left out where the models differ."
    return Table("What each was trained with", ["contender", *names], rows, note)


def _of_all(runs: Sequence[Mapping[str, object]], name: str) -> str:
    """A setting's value in each of a contender's runs, once where it is one."""
    return " / ".join(dict.fromkeys(_setting(run[name]) for run in runs))


def _setting(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def cost(results: Sequence[Result], speeds: Mapping[str, float], machine: str) -> Table:
    """What the contenders cost."""
    rows = []
    for result in results:
        runs = result.runs
        speed, seconds = (float(np.mean([getattr(r, name) for r in runs])) for name in ("training_speed", "seconds"))
        first = runs[0]
        rows.append(
            [
                Entry(result.name),
                Entry(f"{first.parameters / 1e6:.2f} M", first.parameters),
                Entry(f"{first.flops / 1e9:.3g}", first.flops),
                Entry(f"{first.training_flops:.3g}", first.training_flops),
                Entry(f"{seconds / 60:.3g}", seconds),
                Entry(f"{speed:,.0f}", speed),
                Entry(f"{speeds[result.name]:,.0f}", speeds[result.name]),
                Entry(f"{first.memory / 1e6:,.0f}", first.memory),
            ]
        )
    note = (
        f"GFLOP: of the forward pass on one image, a multiply-add being two operations. FLOP: of one training, the "
        f"backward pass taken for twice the forward pass. Minutes: of one training, without validation. Images/s: in "
        f"training, the median over the epochs on the machine that trained; in inference, the forward pass alone in "
        f"batches of {BATCH}, measured for this report on {machine}. Memory: of a training step, counted, not measured."
    )
    columns = ["contender", "parameters", "GFLOP/image", "FLOP, training", "minutes", "images/s, training"]
    return Table("What it costs", [*columns, "images/s, inference", "memory, MB"], rows, note)


def differences(pairs: Mapping[tuple[str, str], Pair], detectable: Mapping[tuple[str, str], float]) -> Table:
    """Whether the contenders differ."""
    rows = [
        [
            Entry(f"{a} against {b}"),
            Entry(f"{100 * pair.difference:+.2f}", pair.difference),
            Entry(f"{100 * pair.low:+.2f} to {100 * pair.high:+.2f}", pair.low),
            Entry(f"{pair.p:.4f}" if pair.p >= 0.0001 else "< 0.0001", pair.p),
            Entry("yes" if pair.significant else "not shown"),
            Entry(points(detectable[a, b]), detectable[a, b]),
        ]
        for (a, b), pair in pairs.items()
    ]
    images = next(iter(pairs.values())).images
    claims: dict[str, list[str]] = {}
    for (a, b), pair in pairs.items():
        claims.setdefault(pair.claim, []).append(f"{a} against {b}")
    about = "; ".join(claim if len(claims) == 1 else f"{claim}: {', '.join(each)}" for claim, each in claims.items())
    note = (
        f"Of top-1, in percentage points, over the same {images:,} test images, with 95 % intervals; about "
        f"{about}. Significant: at 5 %, after Holm's correction for {counted(len(pairs), 'comparison')}. Could "
        f"be seen: the smallest true difference that has a chance of 80 % to be significant."
    )
    return Table(
        "Is the difference real",
        ["difference", "points", "95 % interval", "p", "significant", "could be seen"],
        rows,
        note,
    )


def trainings(cells: Sequence[Cell], names: Sequence[str], measured: Sequence[Measured | None]) -> Table:
    """Every cell, with its run."""
    rows = []
    for cell, name, run in zip(cells, names, measured, strict=True):
        row = [Entry(name), Entry(str(cell.seed), cell.seed)]
        row.append(Entry("") if cell.fold is None else Entry(str(cell.fold), cell.fold))
        if run is None:
            row += [Entry(""), Entry(""), Entry(""), Entry(""), Entry(cell.problem or "not done yet")]
        else:
            row += [Entry(percent(run.report.top1), run.report.top1)]
            row += [Entry(f"{run.report.macro_f1:.4f}", run.report.macro_f1)]
            row += [Entry(str(run.history[-1]["epoch"]), run.history[-1]["epoch"])]
            row += [Entry(f"{run.seconds / 60:.3g}", run.seconds), Entry(str(run.run))]
        rows.append(row)
    columns = ["contender", "seed", "fold", "top-1", "macro-F1", "epochs", "minutes", "run"]
    return Table("Every training", columns, rows, folded=True, most=30)


def classes(results: Sequence[Result]) -> Table:
    """The accuracy of each contender in each class, those first in which they differ most."""
    support = [int(row["support"]) for row in results[0].repeats[0].report.per_class.values()]
    recalls = np.stack([result.recall for result in results], axis=1)
    ranges = np.ptp(recalls, axis=1)
    names = results[0].runs[0].info.classes
    rows = [
        [
            Entry(names[index]),
            Entry(str(support[index]), support[index]),
            *(Entry(f"{100 * recall:.1f}", recall) for recall in recalls[index].tolist()),
            Entry(f"{100 * ranges[index]:.1f}", float(ranges[index])),
        ]
        for index in np.argsort(-ranges, kind="stable")
    ]
    columns = ["class", "images", *(f"{result.name}, %" for result in results), "range"]
    note = "The fraction of each class's test images that is right, in the mean over the seeds. Not tested one by one."
    return Table("Every class", columns, rows, note, folded=True, most=_MANY)
