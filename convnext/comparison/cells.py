"""The cells of a comparison: trained in turn or several at a time, those that are finished left as they are."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from convnext.comparison.cell import Cell
from convnext.comparison.definition import Contender
from convnext.comparison.plan import FILE, Plan
from convnext.comparison.running import Job, Outcome, run_jobs
from convnext.config import RunSettings
from convnext.data.progress import duration
from convnext.output import say
from convnext.runs.folder import folders, is_finished, read_metrics
from convnext.storage.files import write_text
from convnext.storage.locks import in_use
from convnext.training.interruption import StopSignals
from convnext.training.train import train
from convnext.weights.model_info import read_json, read_object

_PATIENCE = 60  # seconds
_RATE, _RATES_FILE = "optimizer.lr", "learning_rates.json"


class _Todo(NamedTuple):
    """A training: what it is called, and its settings."""

    label: str
    settings: RunSettings


class Cells:
    """The trainings of a plan, in the folder ``output``.

    Attributes:
        failed: exit statuses of the trainings that failed: 2 where the user can mend it.
    """

    def __init__(self, plan: Plan, output: Path) -> None:
        self.plan, self.output = plan, output
        self.failed: list[int] = []
        self._problems: dict[str, str] = {}  # by the name of the run
        path = output / _RATES_FILE  # with what was chosen before, which stays
        self._rates: dict[str, dict[str, Any]] = read_object(path) if path.exists() else {}

    def train(
        self, signals: StopSignals, parallel: int, gpus: Sequence[str], after_each: Callable[[], None] = lambda: None
    ) -> None:
        """Choose learning rates, where that is asked for, and train what is not finished; a failure ends nothing.

        Args:
            signals: asked whether to stop.
            parallel: trainings at a time.
            gpus: one for each of them, if there are any; see `convnext.comparison.running.devices`.
            after_each: called after each training that is a cell.

        Raises:
            InterruptedRunError: a signal asked to stop; all is saved.
        """
        run = partial(self._run, signals=signals, parallel=parallel, gpus=gpus)
        searched = [each for each in self.plan.contenders if each.label not in self._rates]
        if rates := self.plan.definition.learning_rates:
            for _ in run([self._at_rate(*pair) for pair in product(searched, rates)]):
                pass
            for contender in searched:
                self._choose(contender)
        for _ in run([todo for _, todo in self._todo() if todo is not None]):
            after_each()

    def cells(self) -> list[Cell]:
        """All cells, as they are now."""
        cells = []
        for cell, todo in self._todo():
            run = todo and _finished(todo.settings)
            problem = None if run or not todo else self._problems.get(todo.settings.name)
            cells.append(replace(cell, run=run, problem=problem) if todo else cell)
        return cells

    def _todo(self) -> Iterable[tuple[Cell, _Todo | None]]:
        """Every cell with its training; without one where no learning rate could be chosen, or is chosen yet. A seed
        is trained of all contenders before the next, so that what is there at any time can be compared."""
        definition = self.plan.definition
        folds = range(definition.folds) if definition.folds else (None,)
        for number, fold, contender in product(range(definition.seeds), folds, self.plan.contenders):
            seed = contender.settings.seed + number
            cell = Cell(contender.model, contender.varied, seed, fold)
            if definition.learning_rates:
                if contender.label not in self._rates:
                    yield replace(cell, problem="no learning rate is chosen" if self.failed else None), None
                    continue
                at_best = _with_rate(contender, self._rates[contender.label]["chosen"])
                yield replace(cell, settings=at_best.varied), self._named(at_best, seed, fold)
            else:
                yield cell, self._named(contender, seed, fold)

    def _at_rate(self, contender: Contender, rate: float) -> _Todo:
        """The contender's first training, with a learning rate: the one that is chosen is a cell, then."""
        fold = 0 if self.plan.definition.folds else None
        return self._named(_with_rate(contender, rate), contender.settings.seed, fold)

    def _named(self, contender: Contender, seed: int, fold: int | None) -> _Todo:
        label = f"{contender.label}, seed {seed}" + ("" if fold is None else f", fold {fold}")
        return _Todo(label, contender.named(self.output / "runs", seed, fold))

    def _choose(self, contender: Contender) -> None:
        """Choose the learning rate that is best on the validation split, of those with which training did not fail."""
        runs = {
            rate: _finished(self._at_rate(contender, rate).settings) for rate in self.plan.definition.learning_rates
        }
        values = {rate: _validation(run) for rate, run in runs.items() if run is not None}
        if not values:
            say(f"{contender.label}: with no learning rate could it be trained")
            return
        metric = contender.settings.monitor
        best = (min if metric == "loss" else max)(values, key=values.__getitem__)
        shown = ", ".join(f"{rate:g} {values[rate]:.4f}" if rate in values else f"{rate:g} failed" for rate in runs)
        at_end = len(runs) > 1 and best in (min(runs), max(runs))
        hint = "; the best is at the end of the grid, and a wider one may have a better" if at_end else ""
        say(f"{contender.label}: optimizer.lr {best:g} by val {metric}: {shown}{hint}")
        self._rates[contender.label] = {
            "chosen": best,
            f"val_{metric}": {f"{k:g}": value for k, value in values.items()},
        }
        write_text(self.output / _RATES_FILE, json.dumps(self._rates, indent=2) + "\n")

    def _run(self, todos: Sequence[_Todo], signals: StopSignals, parallel: int, gpus: Sequence[str]) -> Iterator[None]:
        """Train what is not finished, and say how each ended."""
        todo = {each.settings.name: each for each in todos}
        names = [name for name, each in todo.items() if _finished(each.settings) is None]
        if done := len(todo) - len(names):
            say(f"{done} of {len(todo)} trainings are finished already")
        logs = self.output / "logs" if parallel > 1 else None  # several at a time would garble each other's lines
        jobs = [Job(name, partial(_train, todo[name].settings), logs and logs / f"{name}.txt") for name in names]
        if logs and jobs:
            say(f"{parallel} trainings at a time; what each says is in {logs}")
        start = time.perf_counter()
        for number, (job, outcome) in enumerate(run_jobs(jobs, signals, parallel, gpus), done + 1):
            took = duration(time.perf_counter() - start)
            say(f"[{number}/{len(todo)}] {todo[job.name].label}: {outcome.problem or 'finished'}, after {took} in all")
            self._note(job, outcome)
            yield

    def _note(self, job: Job, outcome: Outcome) -> None:
        self._problems.pop(job.name, None)
        if outcome.problem is not None:
            self._problems[job.name] = outcome.problem
            self.failed.append(outcome.status)


def _with_rate(contender: Contender, rate: float) -> Contender:
    settings = contender.settings.replace(**{_RATE: rate})
    return contender.model_copy(update={"settings": settings, "varied": {**contender.varied, _RATE: rate}})


def _train(settings: RunSettings) -> Path:
    """Train, or go on where there is such a run; returns its folder."""
    before = folders(settings.output, settings.name)
    for _ in range(_PATIENCE):  # where a comparison was killed, its training saves and ends by itself
        if not before or not in_use(before[0]):
            break
        time.sleep(1)
    return train(settings, resume=bool(before)).path


def _finished(settings: RunSettings) -> Path | None:
    """The finished run of these settings, by its name."""
    for folder in folders(settings.output, settings.name):
        path = folder / "settings.json"
        if path.is_file() and is_finished(folder, read_json(path, RunSettings)):
            return folder
    return None


def _validation(run: Path) -> float:
    """The metric that chooses, on the validation split, of the weights that the run is tested with: the last, or with
    patience the best."""
    settings = read_json(run / "settings.json", RunSettings)
    name = f"val_{settings.monitor}"
    values = [line[name] for line in read_metrics(run) if name in line]
    best = min if settings.monitor == "loss" else max
    return float(best(values) if settings.patience is not None else values[-1])


def cells_of_comparison(output: Path) -> list[Cell]:
    """The cells of the comparison in a folder; CheckpointError where it cannot be read."""
    return Cells(read_json(output / FILE, Plan), output).cells()
