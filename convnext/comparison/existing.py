"""Cells of runs that are there: of a comparison, or trained by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convnext.comparison.cell import Cell
from convnext.config import RunSettings
from convnext.errors import CheckpointError
from convnext.runs.folder import CHANGES_RESULT, MAY_CHANGE, flatten, is_finished
from convnext.weights.model_info import read_json

# What tells the runs of one contender apart, and what follows from the data or the machine.
_NOT_VARIED = MAY_CHANGE - CHANGES_RESULT
_NOT_VARIED |= {"recipe", "seed", "model.name", "data.fold", "data.mean", "data.std", "data.augment_on"}
_NOT_VARIED |= {"gradient_accumulation"}


def cells_of_runs(runs: Sequence[Path]) -> list[Cell]:
    """The cells of runs, or of the runs in folders of runs: what varies are the settings in which they differ.

    Raises:
        CheckpointError: a folder that is no run and has none, or settings that cannot be read.
    """
    folders = [run for path in runs for run in _runs_in(path)]
    settings = [read_json(run / "settings.json", RunSettings) for run in folders]
    flat = [flatten(each) for each in settings]
    models = [each.model.name for each in settings]

    def varies(name: str) -> bool:
        # A setting of the model by which the models differ anyway, such as their depths, is nothing that was varied.
        groups: dict[Any, set[str]] = {}
        for model, values in zip(models, flat, strict=True):
            key = model if name.startswith("model.") else None
            groups.setdefault(key, set()).add(str(values[name]))
        return any(len(values) > 1 for values in groups.values())

    varied = sorted(name for name in flat[0] if name not in _NOT_VARIED and varies(name))
    cells = []
    for run, each, values in zip(folders, settings, flat, strict=True):
        done = is_finished(run, each)
        cells.append(
            Cell(
                model=each.model.name,
                settings={name: values[name] for name in varied},
                seed=each.seed,
                fold=each.data.fold if each.data.folds else None,
                run=run if done else None,
                problem=None if done else f"{run} is not finished",
            )
        )
    return cells


def _runs_in(path: Path) -> list[Path]:
    if (path / "settings.json").is_file():
        return [path]
    runs = sorted(file.parent for file in path.glob("*/settings.json"))
    if not runs:
        raise CheckpointError(f"{path} is no run and has none: give folders of runs, or of a comparison")
    return runs
