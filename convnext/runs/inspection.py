"""What is in a checkpoint, of this version's format or an older one."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from convnext.config import RunSettings
from convnext.models.summary import count_parameters
from convnext.runs import checkpoint
from convnext.runs.checkpoint import TrainingState
from convnext.runs.history import attempt, differences
from convnext.weights.model_info import ModelInfo, read_json, read_object, validated

Condition: TypeAlias = Literal["whole", "damaged", "no digests"]

_WITHOUT_DIGESTS = (1,)  # formats


@dataclass(frozen=True)
class Stored:
    """One checkpoint's folder, of ``size`` bytes, with those of the ``links`` last and best that point at it.

    Its condition is ``"whole"``, as it was written; ``"damaged"``; or ``"no digests"``, of a format without them.
    """

    path: Path
    links: tuple[str, ...]
    condition: Condition
    size: int

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {"path": str(self.path), "links": self.links, "condition": self.condition, "bytes": self.size}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint says of itself; None where it does not, or not in a way that this version reads.

    Attributes:
        format: of the checkpoint; see `convnext.runs.checkpoint.FORMAT`.
        info: how to use the weights.
        values: the settings as they were written.
        settings: the same as this version reads them.
        changes: those that are not the recipe's, by dotted name.
        state: where the run stands; its settings are to be taken from here.
        problems: a line for each thing that cannot be read, and why the run cannot go on from here.
    """

    path: Path
    format: int | None
    info: ModelInfo | None
    parameters: int | None
    values: dict[str, Any]
    settings: RunSettings | None
    changes: dict[str, Any]
    state: TrainingState | None
    problems: tuple[str, ...]

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch; None before the first has ended."""
        metrics = self.state.metrics if self.state else {}
        epoch, step = metrics.get("epoch", 0), metrics.get("step", 0)
        return round(step / epoch) if 1 <= epoch <= step < math.inf else None

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {
            "path": str(self.path),
            "format": self.format,
            "model": self.info.model_dump(mode="json") if self.info else None,
            "parameters": self.parameters,
            "settings": self.values,
            "changes": self.changes,
            "state": self.state.model_dump(mode="json", exclude={"format", "settings"}) if self.state else None,
            "steps_per_epoch": self.steps_per_epoch,
            "problems": self.problems,
        }


def find(folder: Path, name: str = "last") -> tuple[Path, list[Stored]]:
    """The checkpoint that is meant, and all that the run has, the newest last; CheckpointError where there is none.

    Args:
        folder: of a run, or of a checkpoint, which is then the only one.
        name: which checkpoint of a run: ``"last"`` or ``"best"``.
    """
    if _is_checkpoint(folder):
        return folder, [_describe(folder)]
    link = checkpoint.find(folder, name)
    there = [path for path in sorted(link.parent.iterdir()) if not path.is_symlink() and _is_checkpoint(path)]
    return link.with_name(link.resolve().name), [_describe(path) for path in there]


def _is_checkpoint(path: Path) -> bool:
    return path.name[:1] != "." and any((path / name).is_file() for name in ("model.json", "training.json"))


def _describe(path: Path) -> Stored:
    folder = path.resolve()
    links = sorted(link.name for link in folder.parent.iterdir() if link.is_symlink() and link.resolve() == folder)
    condition: Condition = "whole"
    if not checkpoint.is_complete(folder):
        state = attempt(lambda: read_object(folder / "training.json"), []) or {}
        condition = "no digests" if state.get("format") in _WITHOUT_DIGESTS else "damaged"
    return Stored(path, tuple(links), condition, sum(file.lstat().st_size for file in folder.iterdir()))


def read(path: Path) -> Contents:
    """What a checkpoint's folder says, as far as this version reads it."""
    problems: list[str] = []
    info = attempt(lambda: read_json(path / "model.json", ModelInfo), problems)
    raw = attempt(lambda: read_object(path / "training.json"), problems) or {}
    if raw and raw.get("format") not in checkpoint.READABLE:
        attempt(lambda: checkpoint.read_state(path), problems)  # which says what can still be done with it
    settings = attempt(lambda: _settings(raw, path), problems) if raw else None
    return Contents(
        path=path,
        format=raw.get("format"),
        info=info,
        parameters=attempt(lambda: count_parameters(checkpoint.outline(info)), problems) if info else None,
        values=raw["settings"] if isinstance(raw.get("settings"), dict) else {},
        settings=settings,
        changes=(attempt(lambda: differences(settings), problems) if settings else None) or {},
        state=attempt(lambda: _state(raw, path), problems) if raw else None,
        problems=tuple(problems),
    )


def _settings(raw: dict[str, Any], path: Path) -> RunSettings:
    return validated(raw.get("settings"), RunSettings, path / "training.json")


def _state(raw: dict[str, Any], path: Path) -> TrainingState:
    # The settings, which change more often than the rest, have been read on their own.
    return validated(raw | {"settings": RunSettings()}, TrainingState, path / "training.json")
