"""``convnext runs`` and ``inspect``: what was trained, and what a checkpoint holds."""

import json
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from convnext.commands.terminal import parse, print_table, table
from convnext.errors import SettingsError

if TYPE_CHECKING:
    from convnext.runs.history import Summary
    from convnext.runs.inspection import Contents

_CLASSES_SHOWN = 5
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
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON list in place of a table."""


@dataclass(frozen=True)
class _Inspect:
    """Show which checkpoints a run has, whether they are whole, and what is in one of them."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run, or of a checkpoint."""
    checkpoint: Literal["last", "best"] = "last"
    """Which of the run's checkpoints."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object in place of a table and lines."""


def runs_command(args: Sequence[str]) -> int:
    """List runs: status, best accuracy, settings that are not their recipe's; draw their curves."""
    options = parse(_Runs, args, "runs")
    from convnext.runs import history

    if options.plot:
        found = [history.summarise(path) for path in history.find_runs(options.plot, options.folder)]
    else:
        found = history.list_runs(options.folder)
    if options.json:
        print(json.dumps([run.as_dict() for run in found]))
    elif found:
        _print_runs(found)
    else:
        print(f"no runs in {options.folder}: convnext train RECIPE makes one", file=sys.stderr)
    if options.plot:
        _plot(found, options.output)
        print(f"picture: {options.output}", file=sys.stderr if options.json else sys.stdout)
    return 0


def _print_runs(runs: "Sequence[Summary]") -> None:
    columns = ("run", "recipe", "status", "epochs", "best val top-1", "test top-1", "macro-F1", "age")
    rows = table(*columns, "not as in the recipe")
    for run in runs:
        test = _percent(run.test_top1) + (f" ({run.test_name})" if run.test_name != "test" else "")
        macro_f1 = "" if run.test_macro_f1 is None else f"{run.test_macro_f1:.4f}"
        epochs = f"{run.epoch}/{'?' if run.epochs is None else run.epochs}"
        problems = (textwrap.shorten(problem, _NOTE_LENGTH, placeholder=" ...") for problem in run.problems)
        notes = "; ".join(filter(None, (_assignments(run.changes), *problems)))
        age = _age(time.time() - run.changed_at)
        best = _percent(run.best_val_top1)
        rows.add_row(run.path.name, run.recipe, run.status, epochs, best, test, macro_f1, age, notes)
    print_table(rows)


def _plot(runs: "Sequence[Summary]", path: Path) -> None:
    from convnext.plots import plots
    from convnext.runs.folder import read_metrics

    histories = {_label(run, runs): read_metrics(run.path) for run in runs}
    if not any(histories.values()):
        raise SettingsError(f"nothing to draw: no epoch has ended in {', '.join(histories)}")
    plots.compare(histories, path)


def _label(run: "Summary", runs: "Sequence[Summary]") -> str:
    """The run's name, or where several have it its folder."""
    return run.path.name if [other.path.name for other in runs].count(run.path.name) == 1 else str(run.path)


def inspect_command(args: Sequence[str]) -> int:
    """Show what a checkpoint holds: model, classes, metrics, settings, data, versions."""
    options = parse(_Inspect, args, "inspect")
    from convnext.runs import inspection

    chosen, stored = inspection.find(options.folder, options.checkpoint)
    contents = inspection.read(chosen)
    if options.json:
        print(json.dumps(contents.as_dict() | {"checkpoints": [one.as_dict() for one in stored]}))
        return 0
    rows = table("checkpoint", "condition", "size", "links")
    for one in stored:
        rows.add_row(one.path.name, one.condition, f"{one.size / 1e6:,.1f} MB", ", ".join(one.links))
    print_table(rows)
    for fact, value in _facts(contents).items():
        if value:
            print(f"{fact}: {value}")
    for problem in contents.problems:
        print(f"note: {problem}")
    return 0


def _facts(contents: "Contents") -> dict[str, str]:
    """Lines of a checkpoint, by what they are about; empty ones are not known."""
    facts = {"checkpoint": f"{contents.path}, format {contents.format}"}
    return facts | _about_model(contents) | _about_training(contents)


def _about_model(contents: "Contents") -> dict[str, str]:
    from convnext.models import registry

    if (info := contents.info) is None:
        return {}
    more = ", ..." if len(info.classes) > _CLASSES_SHOWN else ""
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (info.mean, info.std))
    channels = f"{info.channels} channel" + "s" * (info.channels > 1)
    parameters = "" if contents.parameters is None else f", {contents.parameters:,} parameters"
    return {
        "model": registry.describe(info.model) + parameters,
        "classes": f"{len(info.classes):,}: {', '.join(info.classes[:_CLASSES_SHOWN])}{more}",
        "images": f"{channels}, {info.image_size} px, centre crop {info.center_crop:g}",
        "mean": mean,
        "std": std,
    }


def _about_training(contents: "Contents") -> dict[str, str]:
    if (state := contents.state) is None:
        return {}
    settings, versions = contents.settings, dict(state.versions)
    step = f"{state.step:,}"
    if (per_epoch := contents.steps_per_epoch) is not None and settings is not None:
        step += f" of {per_epoch * settings.epochs:,} (epoch {state.step / per_epoch:.4g} of {settings.epochs})"
    recipe = settings.recipe if settings else str(contents.values.get("recipe", ""))
    changes = _assignments(contents.changes) or ("as in the recipe" if settings and settings.recipe else "the defaults")
    best = (
        ""
        if state.best_step is None
        else f"top-1 {_percent(state.best_top1)} on validation, at step {state.best_step:,}"
    )
    return {
        "step": step,
        "last epoch": _assignments({name: f"{value:.4g}" for name, value in state.metrics.items()}),
        "best": best,
        "skipped steps": str(state.skipped_in_all or ""),
        "recipe": recipe,
        "settings": changes if settings else "",
        "images' digests": _assignments({name: value[:12] for name, value in state.fingerprints.items()}),
        "commit": versions.pop("commit", ""),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _assignments(values: Mapping[str, Any]) -> str:
    """``name=value name=value``, lists with commas."""
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) or "()" if isinstance(value, list | tuple) else str(value)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"
