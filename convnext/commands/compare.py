"""``convnext compare``: models or settings, trained alike, and whether their difference is real."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from convnext import recipes
from convnext.commands.options import automatic_batch, given_settings, option_words
from convnext.commands.terminal import Flag, Table, parse, percent, print_table
from convnext.config import RunSettings
from convnext.errors import SettingsError, UserError, reason
from convnext.output import say, show

if TYPE_CHECKING:
    from convnext.comparison.cell import Cell
    from convnext.comparison.cells import Cells
    from convnext.comparison.definition import Definition
    from convnext.comparison.plan import Plan

_OUTPUT, _OF_RUNS = Path("comparison"), Path("comparison-of-runs")


@dataclass(frozen=True)
class _Compare:
    """Train models, or values of settings, under one recipe, with the same data, seeds and budget, and write a report
    on their differences into the folder --output; the same command goes on where it was stopped.

    Any setting of `convnext train` can be changed, for all of them. Exit status: 0 all are trained, 1 or 2 (what the
    user can mend) some failed and the rest is trained, 128 + n stopped by signal n.
    """

    settings: Annotated[RunSettings, tyro.conf.arg(name="")]
    recipe: str | None = None
    """Recipe under which all are trained; `convnext recipes` lists them."""
    models: tuple[str, ...] = ()
    """Models to compare, those of libraries as timm:NAME or torchvision:NAME; none for the recipe's own."""
    vary: tuple[str, ...] = ()
    """Values of settings to compare, NAME=VALUE,VALUE: every model is trained with every combination."""
    one_at_a_time: Flag = False
    """In place of every combination: every model as it is, and with each value of --vary alone (an ablation)."""
    seeds: int | None = None
    """Trainings of each, the same seeds for all; None for 3, or with folds for 1."""
    budget: str | None = None
    """Cost of one training, 30min or 2e15flop, from which the epochs of each follow; None for --epochs."""
    learning_rates: tuple[float, ...] = ()
    """Values of optimizer.lr of which each takes its best, by the validation split, in its first training."""
    folds: int | None = None
    """Divide all images into so many folds, each of which is the test once: for small data sets."""
    parallel: int | None = None
    """Trainings at a time; None for one a GPU where there are several, else one."""
    report: tuple[Path, ...] = ()
    """Train nothing, but write the report anew: of a comparison's folder, into it; or of runs, into --output
    (comparison-of-runs)."""


def main(args: Sequence[str]) -> int:
    """Train models or settings alike, and report whether their difference is real."""
    args = automatic_batch(args)
    words = option_words(args, "--recipe")
    name = next((value for option, value in pairwise(words) if option == "--recipe"), None)
    default = RunSettings() if name is None else recipes.get(name).settings
    options = parse(_Compare, args, "compare", _Compare(default.replace(output=_OUTPUT)))
    given = given_settings(args) - {"recipe", "output"}
    if options.report:
        return _report_on(options, given)
    if options.recipe is None:
        raise SettingsError(f"compare under which recipe? --recipe NAME; known: {', '.join(recipes.names())}")
    from convnext.comparison.definition import Definition, parse_vary
    from convnext.runs.folder import flatten

    values = flatten(options.settings)
    definition = Definition(
        recipe=options.recipe,
        given={name: values[name] for name in sorted(given)},
        models=options.models,
        vary=parse_vary(options.vary),
        one_at_a_time=options.one_at_a_time,
        seeds=_at_least_one("seeds", (1 if options.folds else 3) if options.seeds is None else options.seeds),
        folds=options.folds,
        learning_rates=options.learning_rates,
        budget=options.budget,
    )
    return _compare(definition, options.settings.output, options.parallel)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise SettingsError(f"--{name} is at least 1, got {value}")
    return value


def _compare(definition: "Definition", output: Path, parallel: int | None) -> int:
    from convnext.comparison.cells import Cells
    from convnext.comparison.plan import planned
    from convnext.comparison.running import devices
    from convnext.training.interruption import StopSignals

    gpus = devices(definition.given.get("device", "auto"))
    parallel = _at_least_one("parallel", (len(gpus) or 1) if parallel is None else parallel)
    with StopSignals(output) as signals, planned(definition, output, signals, parallel, gpus) as plan:
        _show(plan)
        cells = Cells(plan, output)
        cells.train(signals, parallel, gpus, _updates(cells, output))
        done = cells.cells()
        _write_report(done, output)
    missing = [cell for cell in done if cell.run is None]
    show(f"Report    {output / 'report.html'}, report.md, report.json")
    if missing:
        show(f"Missing   {len(missing)} of {len(done)} trainings; the same command trains them again")
    return 0 if not cells.failed else 2 if set(cells.failed) == {2} else 1


def _show(plan: "Plan") -> None:
    """What will be trained."""
    timed = any(cost.pace for cost in plan.costs)
    columns = ("contender", "parameters", "GFLOPs an image", "training", "optimizer", "learning rate", "epochs")
    rows = Table(
        *columns, *(["seconds an epoch"] if timed else []), *(["of the budget"] if plan.definition.budget else [])
    )
    for contender, cost in zip(plan.contenders, plan.costs, strict=True):
        optimizer = contender.settings.optimizer
        rate = "chosen" if plan.definition.learning_rates else f"{optimizer.lr:g}"
        row = [contender.label, f"{cost.parameters:,}", f"{cost.gflops:.3g}", f"{cost.training:.2e} flop"]
        row += [optimizer.name, rate, f"{contender.settings.epochs:,}"]
        row += [f"{cost.pace.seconds(contender.settings) / contender.settings.epochs:.1f}"] if cost.pace else []
        rows.add_row(*row, *([] if cost.budget is None else [percent(cost.budget)]))
    print_table(rows)
    if notes := list(dict.fromkeys(note for contender in plan.contenders for note in contender.notes)):
        show(*notes)
    sys.stdout.flush()  # the trainings take long
    if over := [c.label for c, cost in zip(plan.contenders, plan.costs, strict=True) if (cost.budget or 0) > 1]:
        say(f"one epoch costs more than the budget, and is trained all the same: {', '.join(over)}")


def _report_on(options: _Compare, given: set[str]) -> int:
    from convnext.comparison.cells import cells_of_comparison
    from convnext.comparison.existing import cells_of_runs
    from convnext.comparison.plan import FILE

    defaults = _Compare(options.settings)
    names = [field.name for field in fields(_Compare) if field.name not in ("settings", "report")]
    own = [name for name in names if getattr(options, name) != getattr(defaults, name)]
    if extra := [*(name.replace("_", "-") for name in own), *sorted(given)]:
        raise SettingsError(f"--report trains nothing: leave --{extra[0]} out")
    output = options.settings.output
    if len(options.report) == 1 and (options.report[0] / FILE).exists():
        cells = cells_of_comparison(options.report[0])
        output = options.report[0] if output == _OUTPUT else output
    else:
        cells = cells_of_runs(options.report)
        output = _OF_RUNS if output == _OUTPUT else output
        if (output / FILE).exists():
            raise SettingsError(f"{output} holds the report of another comparison: give --output a folder for this one")
    if not any(cell.run for cell in cells):
        raise UserError(f"no run of {', '.join(map(str, options.report))} is finished: there is nothing to report")
    _write_report(cells, output)
    show(f"Report    {output / 'report.html'}, report.md, report.json")
    return 0


def _updates(cells: "Cells", output: Path) -> Callable[[], None]:
    """What writes the report on what is finished, in no more than a tenth of the time. An error in it does not end the
    trainings: the last one has it, too."""
    due = 0.0

    def update() -> None:
        nonlocal due
        if (start := time.monotonic()) < due:
            return
        try:
            _write_report(cells.cells(), output)
        except Exception as error:
            say(f"no report on what is finished so far: {type(error).__name__}: {reason(error)}")
        due = time.monotonic() + 9 * (time.monotonic() - start)

    return update


def _write_report(cells: "Sequence[Cell]", output: Path) -> None:
    from convnext.comparison import report

    report.write_report(cells, output)
