"""``convnext runs``: what was trained."""

import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from convnext.commands.terminal import Flag, Table, assignments, parse, percent, print_table
from convnext.errors import SettingsError
from convnext.output import say, show

if TYPE_CHECKING:
    from convnext.runs.history import Summary

_NOTE_LENGTH = 120  # characters of a problem in a table; --json has all


@dataclass(frozen=True)
class _Runs:
    """List runs, newest first: status, accuracy, settings that are not their recipe's; or draw some in one plot."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder of the runs, or of one."""
    plot: tuple[str, ...] = ()
    """Runs, by name or folder, to list alone and whose curves to draw."""
    output: Path = Path("runs.png")
    """Picture to write."""
    json: Flag = False
    """Print a JSON list in place of a table."""


def main(args: Sequence[str]) -> int:
    """List runs: status, best accuracy, settings that are not their recipe's; draw their curves."""
    options = parse(_Runs, args, "runs")
    from convnext.runs import history

    if options.plot:
        summaries = [history.summarise(path) for path in history.find_runs(options.plot, options.folder)]
    else:
        summaries = history.list_runs(options.folder)
    if options.json:
        print(json.dumps([summary.as_dict() for summary in summaries]))
    elif summaries:
        _print_runs(summaries)
    else:
        say(f"no runs in {options.folder}: convnext train RECIPE makes one")
    if options.plot:
        _plot(summaries, options.output)
        (say if options.json else show)(f"picture: {options.output}")
    return 0


def _print_runs(runs: "Sequence[Summary]") -> None:
    columns = ("run", "recipe", "status", "epochs", "best val top-1", "test top-1", "macro-F1", "age")
    rows = Table(*columns, "not as in the recipe")
    for run in runs:
        test = percent(run.test_top1) + (f" ({run.test_name})" if run.test_name != "test" else "")
        macro_f1 = "" if run.test_macro_f1 is None else f"{run.test_macro_f1:.4f}"
        epochs = f"{run.epoch}/{'?' if run.epochs is None else run.epochs}"
        problems = (textwrap.shorten(problem, _NOTE_LENGTH, placeholder=" ...") for problem in run.problems)
        notes = "; ".join(filter(None, (assignments(run.changes), *problems)))
        age = _age(time.time() - run.changed_at)
        best = percent(run.best_val_top1)
        rows.add_row(run.path.name, run.recipe, run.status, epochs, best, test, macro_f1, age, notes)
    print_table(rows)


def _plot(runs: "Sequence[Summary]", path: Path) -> None:
    from convnext.plots.curves import compare
    from convnext.runs.folder import read_metrics

    names = [run.path.name for run in runs]  # a folder is the label of those whose name several have
    labels = [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]
    histories = {label: read_metrics(run.path) for label, run in zip(labels, runs, strict=True)}
    if not any(histories.values()):
        raise SettingsError(f"nothing to draw: no epoch has ended in {', '.join(histories)}")
    compare(histories, path)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"
