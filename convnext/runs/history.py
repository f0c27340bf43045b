"""What the runs in a folder did: told from their files without opening a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel

from convnext import recipes
from convnext.config import RunSettings
from convnext.errors import CheckpointError, UserError, did_you_mean
from convnext.models import registry
from convnext.runs.early_stopping import stopped_early
from convnext.runs.folder import flatten, read_metrics
from convnext.storage.locks import in_use
from convnext.weights.model_info import read_json

T = TypeVar("T")


class _Written(BaseModel):
    """What a list needs of a run's ``settings.json``, whatever version wrote the rest."""

    recipe: str = ""
    epochs: int | None = None


class _Report(BaseModel):
    top1: float
    macro_f1: float | None = None


Status: TypeAlias = Literal["finished", "running", "interrupted", "failed", "damaged"]

# Where a run lies and what it is called: no two runs share them.
_UNIQUE = {"recipe", "name", "output", "data.root"}
# Left open in a recipe, these are filled in by the data or the machine.
_FILLED_IN = {"gradient_accumulation", "precision", "data.augment_on", "data.mean", "data.std"}


@dataclass(frozen=True)
class Summary:
    """A run at a glance; what is None is not there, or cannot be read.

    Attributes:
        recipe: that it started from; empty for none, or where that cannot be read.
        status: ``"finished"``; ``"running"``, which is in use by a process; ``"interrupted"``, which can be resumed;
            ``"failed"``, which stopped before it saved a checkpoint; or ``"damaged"``, which cannot be told.
        epoch: the last one that ended; 0 for none.
        test_name: ``"test"``, or ``"val"`` where the data has no other split to test on.
        test_macro_f1: mean F1 over the classes on that split.
        changes: settings that are not the recipe's, by dotted name.
        changed_at: when it last wrote, in seconds since 1970.
        problems: a line for each file that cannot be read.
    """

    path: Path
    recipe: str
    status: Status
    epoch: int
    epochs: int | None
    best_val_top1: float | None
    test_name: str
    test_top1: float | None
    test_macro_f1: float | None
    changes: dict[str, Any]
    changed_at: float
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self) | {"path": str(self.path)}


def list_runs(folder: Path) -> list[Summary]:
    """The runs in a folder, newest first; one where it is itself a run's; CheckpointError where it is not there."""
    if not folder.is_dir():
        raise CheckpointError(f"folder {folder} is {'not a folder' if folder.exists() else 'not there'}")
    runs = [folder] if _is_run(folder) else [path for path in folder.iterdir() if _is_run(path)]
    return sorted(map(summarise, runs), key=lambda run: (-run.changed_at, run.path.name))


def find_runs(names: Sequence[str], folder: Path) -> list[Path]:
    """The folders of runs, each by its path or by its name in ``folder``; CheckpointError, with close matches, where
    there is no run of a name."""
    runs = []
    for name in names:
        path = next((path for path in (folder / name, Path(name)) if _is_run(path)), None)
        if path is None:
            known = [path.name for path in folder.iterdir() if _is_run(path)] if folder.is_dir() else []
            raise CheckpointError(f"no run is called {name!r} in {folder}: {did_you_mean(name, known)}")
        runs.append(path)
    return runs


def _is_run(path: Path) -> bool:
    try:
        return (path / "settings.json").is_file()
    except OSError:  # a folder that may not be read
        return False


def summarise(run: Path) -> Summary:
    """What the files of a run say; what cannot be read is left out, and told in ``problems``."""
    problems: list[str] = []
    written = attempt(lambda: read_json(run / "settings.json", _Written), problems)
    history = attempt(lambda: read_metrics(run), problems) or []
    test_name = "test" if (run / "test_report.json").exists() or not (run / "val_report.json").exists() else "val"
    path = run / f"{test_name}_report.json"
    report = attempt(lambda: read_json(path, _Report), problems) if path.exists() else None
    epoch, epochs = (history[-1]["epoch"] if history else 0), written.epochs if written else None
    finished = report is not None and epochs is not None and epoch >= epochs
    status = _status(run, bool(problems), finished or (report is not None and _stopped_early(run, history)))
    changes = attempt(lambda: differences(read_json(run / "settings.json", RunSettings)), problems) if written else {}
    wrote = next(path for path in (run / "metrics.jsonl", run / "settings.json") if path.exists())
    return Summary(
        path=run,
        recipe=written.recipe if written else "",
        status=status,
        epoch=epoch,
        epochs=epochs,
        best_val_top1=max((line["val_top1"] for line in history if "val_top1" in line), default=None),
        test_name=test_name,
        test_top1=report.top1 if report else None,
        test_macro_f1=report.macro_f1 if report else None,
        changes=changes or {},
        changed_at=wrote.stat().st_mtime,
        problems=tuple(problems),
    )


def _stopped_early(run: Path, history: Sequence[dict[str, Any]]) -> bool:
    settings = attempt(lambda: read_json(run / "settings.json", RunSettings), [])  # what it cannot read is said later
    return settings is not None and stopped_early(history, settings)


def attempt(read: Callable[[], T], problems: list[str]) -> T | None:
    """What ``read`` gives; None, and a line more in ``problems``, where it raises a `UserError`."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _status(run: Path, damaged: bool, finished: bool) -> Status:
    if in_use(run):
        return "running"
    if damaged or finished:
        return "damaged" if damaged else "finished"
    return "interrupted" if (run / "checkpoints" / "last").exists() else "failed"


def differences(settings: RunSettings) -> dict[str, Any]:
    """Settings of a run, by dotted name, that are not its recipe's, or without a recipe not the defaults.

    What a recipe leaves open counts only where the variant of the model would have it otherwise. SettingsError for a
    recipe or a model that this version does not have.
    """
    base = recipes.get(settings.recipe).settings if settings.recipe else RunSettings()
    model, ours = base.model, settings.model
    # As a run resolves it, so that what follows from another name or other weights is no difference of its own.
    resolved = registry.resolve(model.replace(name=ours.name, weights=ours.weights), ours.in_channels or 3)
    before = flatten(base.replace(model=resolved.replace(name=model.name, weights=model.weights)))
    now = flatten(settings.replace(model=registry.resolve(ours)))
    return {
        name: value
        for name, value in now.items()
        if name not in _UNIQUE and value != before[name] and not (name in _FILLED_IN and before[name] in (None, "auto"))
    }
