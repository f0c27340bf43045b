"""The plan of a comparison: its contenders, each with the epochs that fit into the budget; made once, and kept.

A comparison may grow by seeds, models and values of what is varied: what was planned before stays as it was.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from convnext.comparison.budget import WARMUP, Budget, Pace, fitted, flops, measure_pace
from convnext.comparison.definition import Contender, Definition, contenders
from convnext.comparison.running import Job, run_jobs
from convnext.data.datasets.load import load_splits
from convnext.data.splits import Splits
from convnext.devices import pick_device
from convnext.errors import SettingsError, UserError
from convnext.models import registry
from convnext.output import say
from convnext.runs.folder import CHANGES_RESULT, MAY_CHANGE, flatten
from convnext.storage.files import write_text
from convnext.storage.locks import locked
from convnext.training.interruption import StopSignals
from convnext.training.optimizers import make_optimizers
from convnext.training.precision import cpu_precision
from convnext.weights.model_info import read_json

FILE = "comparison.json"
_FITTED = {"epochs", WARMUP}  # which the budget sets


class Cost(BaseModel):
    """What one training of a contender costs, as far as it is known beforehand.

    Attributes:
        parameters: of the model.
        gflops: billions of operations of a forward pass over an image; a multiply-add is two.
        training: operations of the whole training.
        pace: how fast it trains here; None where the budget is not of time.
        budget: seconds or operations of the whole training as a fraction of the budget; None without one.
    """

    model_config = ConfigDict(frozen=True)

    parameters: int
    gflops: float
    training: float
    pace: Pace | None = None
    budget: float | None = None


class Plan(BaseModel):
    """What ``comparison.json`` holds.

    Attributes:
        definition: what is compared.
        contenders: with their settings, epochs among them.
        costs: of one training of each, in the same order.
    """

    definition: Definition
    contenders: tuple[Contender, ...]
    costs: tuple[Cost, ...]

    def in_use(self, given: Mapping[str, Any]) -> "Plan":
        """The plan with what is ``given`` of how and where to compute, which may change when a comparison goes on."""
        changes = {name: value for name, value in given.items() if name in MAY_CHANGE - CHANGES_RESULT}
        changed = (each.model_copy(update={"settings": each.settings.replace(**changes)}) for each in self.contenders)
        return self.model_copy(update={"contenders": tuple(changed)})


def read_plan(output: Path, definition: Definition) -> Plan | None:
    """The plan of the comparison in ``output`` that goes on, or grows; None where there is none.

    Raises:
        SettingsError: it is another comparison.
        CheckpointError: its plan cannot be read.
    """
    if not (output / FILE).exists():
        if output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir()):
            raise SettingsError(f"{output} is there already, and holds no comparison: give --output a new folder")
        return None
    plan = read_json(output / FILE, Plan)
    before, now = (_compared(each) for each in (plan.definition, definition))
    if changed := [f"{name} was {_shown(before.get(name))}, now {_shown(now.get(name))}"
                   for name in {**before, **now} if not _goes_on(name, before.get(name), now.get(name))]:  # fmt: skip
        raise SettingsError(f"{output} holds another comparison: {'; '.join(changed)}. Give --output a new folder")
    return plan


def _compared(definition: Definition) -> dict[str, Any]:
    """What must not change when a comparison goes on, by the name of its option."""
    values = definition.model_dump(mode="json")
    given = {name: value for name, value in values.pop("given").items() if name not in MAY_CHANGE - CHANGES_RESULT}
    return values | given


def _goes_on(name: str, before: Any, now: Any) -> bool:
    """Whether what was asked for is asked for again, and at most more."""
    if name == "seeds":
        return bool(before <= now)
    if name == "models":  # the recipe's own, where none are named
        return before == now or bool(before and set(before) <= set(now))
    if name == "vary":
        return all(set(values) <= set(now.get(varied, ())) for varied, values in before.items())
    return bool(before == now)


def _shown(value: Any) -> str:
    return json.dumps(value) if value not in (None, [], {}) else "not given"


@contextmanager
def planned(
    definition: Definition, output: Path, signals: StopSignals, parallel: int, gpus: Sequence[str]
) -> Iterator[Plan]:
    """The plan of the comparison in ``output``, which other processes are kept out of meanwhile: read where it goes on,
    else made, or made longer, and written; see `make_plan`.

    Raises:
        UserError: it is another comparison, or none that can be trained; then nothing is written.
    """
    new = not output.exists()
    plan = read_plan(output, definition)
    if plan is None:
        contenders(definition)  # what is wrong with them needs no folder
    output.mkdir(parents=True, exist_ok=True)
    try:
        with locked(output):
            if plan is None or _compared(plan.definition) != _compared(definition):
                plan = make_plan(definition, output, signals, parallel, gpus, plan)
            yield plan.in_use(definition.given)
    finally:
        if new and not (output / FILE).exists():
            shutil.rmtree(output)


def make_plan(
    definition: Definition,
    output: Path,
    signals: StopSignals,
    parallel: int,
    gpus: Sequence[str],
    before: Plan | None = None,
) -> Plan:
    """Look at models and data, find the epochs that fit into the budget, and write the plan into ``output``; what the
    plan of ``before`` has stays.

    Raises:
        UserError: models, settings or data that cannot be used.
        InterruptedRunError: a signal asked to stop.
    """
    budget = None if definition.budget is None else Budget.parse(definition.budget)
    chosen, costs = list[Contender](), list[Cost]()
    made = contenders(definition)
    if before is not None:  # what is varied keeps its order, of which the contenders' names are made
        order = [*before.definition.vary, *definition.vary]
        vary = {name: definition.vary[name] for name in dict.fromkeys(order)}
        definition = definition.model_copy(update={"vary": vary})
        made = contenders(definition)
    known = {} if before is None else _known(before, made, output)
    new = [each for each in made if each.label not in known]
    loaded = {each.settings.data: load_splits(each.settings.data) for each in made}
    if definition.learning_rates and any(splits.val is None for splits in loaded.values()):
        raise SettingsError(
            "--learning-rates are chosen on the validation split, and there is none: give --data.val-fraction 0.1, say"
        )
    for each in new:
        _check_optimizer(each, loaded[each.settings.data])
    by_time = budget is not None and budget.unit == "seconds"
    paces = _paces(new, signals, parallel, gpus) if new and by_time else {}
    for contender in made:
        if contender.label in known:
            contender, cost = known[contender.label]
        else:
            splits = loaded[contender.settings.data]
            keep_warmup = WARMUP in {**definition.given, **contender.varied}
            settings, cost = _fit(contender, splits, budget, paces.get(contender.label), keep_warmup)
            contender = contender.model_copy(update={"settings": settings})
        chosen.append(contender)
        costs.append(cost)
    plan = Plan(definition=definition, contenders=tuple(chosen), costs=tuple(costs))
    write_text(output / FILE, plan.model_dump_json(indent=2) + "\n")
    return plan


def _known(before: Plan, made: Sequence[Contender], output: Path) -> dict[str, tuple[Contender, Cost]]:
    """The contenders of a plan by name, with what each costs; SettingsError where one is none of those ``made`` now, or
    would be trained with other settings, as after a change of the recipe."""
    known = {each.label: (each, cost) for each, cost in zip(before.contenders, before.costs, strict=True)}
    may_change = MAY_CHANGE - CHANGES_RESULT | {"precision"} | (_FITTED if before.definition.budget else set())
    if lost := sorted(set(known) - {each.label for each in made}):
        raise SettingsError(
            f"{output} holds another comparison, which has {lost[0]}: vary more of what is varied there, or give "
            f"--output a new folder"
        )
    for each in made:
        if each.label not in known:
            continue
        before_now = flatten(known[each.label][0].settings), flatten(each.settings)
        for (name, old), new in zip(before_now[0].items(), before_now[1].values(), strict=True):
            if old != new and name not in may_change:
                raise SettingsError(
                    f"{output} cannot grow: of {each.label} {name} was {_shown(old)}, is now {_shown(new)}. Give "
                    f"--output a new folder"
                )
    return known


def _paces(made: Sequence[Contender], signals: StopSignals, parallel: int, gpus: Sequence[str]) -> dict[str, Pace]:
    """How fast each contender trains here, by its name."""
    say(f"measuring the pace of {len(made)} contenders")
    paces: dict[str, Pace] = {}
    jobs = [Job(each.label, partial(measure_pace, each.settings)) for each in made]
    for job, outcome in run_jobs(jobs, signals, parallel, gpus):
        if outcome.problem is not None:
            raise UserError(f"{job.name}: {outcome.problem}")
        paces[job.name] = outcome.value
    return paces


def _check_optimizer(contender: Contender, splits: Splits) -> None:
    """Refuse, with a SettingsError, an optimizer that has nothing to do in the contender's model."""
    settings = contender.settings
    with torch.device("meta"):
        model = registry.build(registry.resolve(settings.model, splits.channels), len(splits.classes))
        try:
            make_optimizers(model, settings.optimizer)
        except SettingsError as error:
            raise SettingsError(f"{contender.label}: {error}") from None


def _fit(
    contender: Contender, splits: Splits, budget: Budget | None, pace: Pace | None, keep_warmup: bool
) -> tuple[Any, Cost]:
    """The contender's settings with the epochs that fit and the precision of all its trainings, wherever they go on,
    and what a training then costs."""
    settings, classes = contender.settings, len(splits.classes)
    resolved = registry.resolve(settings.model, splits.channels)

    def operations(settings: Any) -> float:
        return flops(settings.replace(model=resolved), classes, len(splits.train))

    cost_of, fraction = pace.seconds if pace is not None else operations, None
    if pace is not None:
        settings = settings.replace(precision=pace.precision)  # a shorter training may not choose another
    if budget is not None:
        settings = fitted(settings, budget.amount, cost_of, keep_warmup)
        fraction = cost_of(settings) / budget.amount
    if settings.precision == "auto" and pick_device(settings.device) == "cpu":
        settings = settings.replace(precision=cpu_precision(settings.replace(model=resolved), splits))
    parameters, multiply_adds = registry.cost(resolved, settings.data.image_size, classes)
    costs = {"parameters": parameters, "gflops": 2e-9 * multiply_adds, "training": operations(settings)}
    return settings, Cost(**costs, pace=pace, budget=fraction)
