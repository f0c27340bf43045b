"""A run's folder: made once, never overwritten, found again to go on."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext.config import RunSettings
from convnext.errors import CheckpointError, SettingsError, UserError, did_you_mean, reason
from convnext.runs.checkpoint import read_settings, read_state
from convnext.runs.early_stopping import stopped_early
from convnext.storage.files import write_text
from convnext.storage.locks import in_use
from convnext.weights.files import weights_path
from convnext.weights.model_info import read_json

# Settings that say where and how to compute, or when to give up, not what: they may change when a run goes on.
MAY_CHANGE = {
    *("name", "output", "device", "trackers", "compile", "checkpoint_activations"),
    *("save_every_epochs", "save_every_steps", "save_every_minutes", "keep", "max_skipped_steps", "patience"),
    *("data.root", "data.workers", "data.strict"),
}
CHANGES_RESULT = {"patience"}  # of these, in a run that is finished
_CHOSEN = ("gradient_accumulation", "data.augment_on")  # by the machine that the run began on, where they are "auto"


def new_folder(output: Path, name: str) -> Path:
    """Make ``output/name``, or where it exists ``output/name-2``, ``-3`` and so on; UserError where that cannot be."""
    folder = output
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = output / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"cannot make run folder {folder}: {error.strerror}; choose another --output") from None
    return folder


def folders(output: Path, name: str) -> list[Path]:
    """The folders that `new_folder` made for this name, newest first."""
    pattern = re.compile(re.escape(name) + r"(?:-([2-9]|[1-9][0-9]+))?")
    entries = output.iterdir() if output.is_dir() else ()
    matches = {path: pattern.fullmatch(path.name) for path in entries if path.is_dir()}
    numbers = {path: int(match[1] or 1) for path, match in matches.items() if match}
    return sorted(numbers, key=lambda path: (numbers[path], path), reverse=True)


def folder_to_resume(settings: RunSettings) -> Path | None:
    """The run that the same command goes on with: of those with these settings the newest that is not finished and that
    no process is working on; else the newest. None where no run has the name; SettingsError where all have other
    settings."""
    candidates = folders(settings.output, settings.name)
    if not candidates:
        return None
    same = {folder: settings for folder in candidates if has_settings(folder, settings)}
    if not same:
        check_same_settings(candidates[0], settings)
    return best_to_resume(same)


def best_to_resume(runs: Mapping[Path, RunSettings]) -> Path:
    """Of runs, newest first, each with its settings, the first that is not finished and that no process is working on;
    else that is not finished; else the first."""
    open_runs = [folder for folder, settings in runs.items() if not is_finished(folder, settings)]
    idle = [folder for folder in open_runs if not in_use(folder)]
    return (idle or open_runs or list(runs))[0]


def run_to_resume(path: Path) -> Path:
    """The folder of the run that a user's ``path`` means: itself, or the run whose last checkpoint it is.

    Raises:
        CheckpointError: it is neither; the message has the runs with names like that, or those that are in it.
    """
    if path.name in ("", ".."):  # the name of a run is wanted
        path = path.resolve()
    run = path.parents[1] if path.parent.name == "checkpoints" else path
    if (run / "settings.json").is_file():
        if run != path and path.resolve() != (run / "checkpoints" / "last").resolve():
            raise CheckpointError(
                f"a run goes on from its last checkpoint, and {path} is another: give {run}, or start a new run from "
                f"these weights with --model.weights {path / 'model.safetensors'}"
            )
        return run
    folder = path if path.is_dir() else path.parent
    runs = [str(entry.parent) for entry in sorted(folder.glob("*/settings.json"))]
    advice = did_you_mean(str(path), runs) if runs else "give the folder of a run, such as runs/digits"
    raise CheckpointError(f"{path} is {'no run: it has no settings.json' if path.exists() else 'not there'}; {advice}")


def settings_to_resume(run: Path, recipe: str | None = None) -> RunSettings:
    """The settings of the run in a folder that may have been renamed or moved, with its name and place as they are now.

    Raises:
        CheckpointError: they cannot be read.
        SettingsError: the run was not started from the ``recipe``, if one is given.
    """
    path = run / "settings.json"
    settings: RunSettings = RunSettings().replace(**read_settings(path))
    if recipe not in (None, settings.recipe):
        raise SettingsError(f"{run} was started from recipe {settings.recipe!r}, not {recipe!r}: leave the recipe out")
    return at_home(settings, run)


def at_home(settings: RunSettings, run: Path) -> RunSettings:
    """The settings with the name and place that the run's folder has."""
    numbered = run in folders(run.parent, settings.name)
    moved: RunSettings = settings.replace(name=settings.name if numbered else run.name, output=run.parent)
    return moved


def absolute_paths(settings: RunSettings) -> RunSettings:
    """The settings with absolute paths of data and weights, so that they mean the same in every working directory;
    those of weights that are not there stay as they are."""
    changes: dict[str, Any] = {
        f"data.{name}": path.absolute() for name in ("root", "exclude") if (path := getattr(settings.data, name))
    }
    for name in ("filters_from", "proxy_from"):
        if path := getattr(settings, name):
            changes[name] = path.absolute()
    weights = weights_path(settings.model.weights)
    if weights is not None and weights.exists():
        changes["model.weights"] = str(weights.absolute())
    changed: RunSettings = settings.replace(**changes)
    return changed


def has_settings(folder: Path, settings: RunSettings) -> bool:
    """Whether the run in a folder can go on under these settings, which are resolved."""
    try:
        check_same_settings(folder, settings)
    except UserError:
        return False
    return True


def is_finished(folder: Path, settings: RunSettings) -> bool:
    """Whether the run in ``folder``, of these settings, has ended and was tested."""
    try:
        lines = read_metrics(folder)
    except CheckpointError:  # which is said when the run goes on
        return False
    ended = bool(lines) and (lines[-1]["epoch"] >= settings.epochs or stopped_early(lines, settings))
    return ended and any(folder.glob("*_report.json"))


def home(checkpoint: Path) -> tuple[Path, RunSettings]:
    """Where reports on a checkpoint's folder go, and the settings that it was trained under: the folder and those of
    its run, or for one that was copied elsewhere its own. CheckpointError where they cannot be read."""
    run, training = checkpoint.parent.parent, checkpoint / "training.json"
    if checkpoint.parent.name == "checkpoints" and (run / "settings.json").is_file():
        return run, read_json(run / "settings.json", RunSettings)
    return checkpoint, read_state(checkpoint).settings if training.is_file() else RunSettings()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, without a last one cut short by a kill; CheckpointError where one is
    damaged."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
        return [_check_line(json.loads(text)) for text in whole]
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({reason(error)}): repair or remove it") from None


def _check_line(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict) or not all(isinstance(value, int | float) for value in line.values()):
        raise ValueError("a line that does not have a number for each name")
    if not all(type(line.get(name)) is int and line[name] >= 1 for name in ("epoch", "step")):
        raise ValueError("a line without an epoch and a step of 1 or more")
    return line


def check_same_settings(folder: Path, settings: RunSettings) -> None:
    """Refuse, with a SettingsError that has the first few with both values, to go on under settings that change the
    result."""
    path = folder / "settings.json"
    if all(path.name.startswith(".") for path in folder.iterdir()):  # killed right after it was made
        return
    if not path.exists():
        raise CheckpointError(f"{folder} has no settings.json: it is no run's folder")
    # An older version wrote down where weights are as the user gave it.
    old, new = flatten(absolute_paths(read_json(path, RunSettings))), flatten(absolute_paths(settings))
    keys = [key for key in new if key not in MAY_CHANGE and old[key] != new[key] and new[key] != "auto"]
    changed = [f"{key} was {old[key]}, now {new[key]}" for key in keys]
    if changed:
        if set(keys) <= {"data.mean", "data.std"}:
            changed.append("these are measured on the training images, which have changed unless you set them")
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SettingsError(
            f"{folder} cannot be resumed with other settings: {'; '.join(changed[:3])}{more}. "
            f"Go on under its own with convnext train --resume {folder}, or leave --resume out to start a new run"
        )


def as_begun(folder: Path, settings: RunSettings) -> RunSettings:
    """The settings, with what they leave to the machine that changes the result as it was when the run in ``folder``
    began, if it has; CheckpointError where its settings cannot be read."""
    path = folder / "settings.json"
    if not path.exists():
        return settings
    before, now = flatten(read_json(path, RunSettings)), flatten(settings)
    begun: RunSettings = settings.replace(**{key: before[key] for key in _CHOSEN if now[key] == "auto"})
    return begun


def changed_since(folder: Path, settings: RunSettings) -> list[str]:
    """What is not as when the run in ``folder`` was last started, of the settings that may change; CheckpointError
    where its settings cannot be read."""
    path = folder / "settings.json"
    if not path.exists():  # killed right after the folder was made
        return []
    old, new = flatten(read_json(path, RunSettings)), flatten(settings)
    return [f"{key} was {old[key]}, now {new[key]}" for key in new if key in MAY_CHANGE and old[key] != new[key]]


def flatten(settings: RunSettings) -> dict[str, Any]:
    """Settings as dotted names to JSON values."""
    flat: dict[str, Any] = {}
    for name, value in settings.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            flat[name] = value
    return flat


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Write ``settings.json``."""
    write_text(folder / "settings.json", json.dumps(settings.model_dump(mode="json"), indent=2) + "\n")
