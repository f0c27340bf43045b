"""A run's folder: made once, never overwritten, found again to go on."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext.config import RunSettings
from convnext.errors import CheckpointError, SettingsError, UserError
from convnext.evaluation.metrics import Report
from convnext.files import write_text
from convnext.training.checkpoint import read_json

# Settings that say where and how to compute, not what: they may change when a run goes on.
_FREE = {"output", "device", "trackers", "data.root", "data.workers"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        settings: its resolved settings.
        report: metrics of the last (averaged) weights on the test split.
        test_name: ``"test"``, or ``"val"`` where the data has no other split to test on.
        unreadable: a line for each image that could not be read since the run was started or resumed.
    """

    path: Path
    settings: RunSettings
    report: Report
    test_name: str = "test"
    unreadable: list[str] = field(default_factory=list)


def new_folder(output: Path, name: str) -> Path:
    """Make ``output/name``, or where it exists ``output/name-2``, ``-3`` and so on.

    Raises:
        UserError: it cannot be made there.
    """
    number = 1
    while True:
        folder = output / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot make run folder {folder}: {error.strerror}; choose another --output") from None


def newest_folder(output: Path, name: str) -> Path | None:
    """The folder that `new_folder` made last for this name, or None."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    found = [
        (int(match[1] or 1), path)
        for path in (output.iterdir() if output.is_dir() else ())
        if path.is_dir() and (match := pattern.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


def check_same_settings(folder: Path, settings: RunSettings) -> None:
    """Refuse to go on under settings that would change the result.

    Raises:
        SettingsError: some differ; the message names the first few, with both values.
        CheckpointError: the run's settings cannot be read.
    """
    path = folder / "settings.json"
    if not any(folder.iterdir()):  # killed right after it was made
        return
    if not path.exists():
        raise CheckpointError(f"{folder} has no settings.json: it is no run's folder")
    before: RunSettings = read_json(path, RunSettings)
    old, new = flatten(before), flatten(settings)
    changed = [f"{key} was {old[key]}, now {new[key]}" for key in new if key not in _FREE and old[key] != new[key]]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SettingsError(
            f"{folder} cannot be resumed with other settings: {'; '.join(changed[:3])}{more}. "
            f"Give the settings that it was started with, or leave --resume out to start a new run"
        )


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
