"""``convnext inspect``: what a checkpoint holds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from convnext.commands.terminal import Flag, Table, assignments, parse, percent, print_table
from convnext.errors import SettingsError
from convnext.output import few, show

if TYPE_CHECKING:
    from convnext.runs.inspection import Contents
    from convnext.weights.model_info import ModelInfo

_CLASSES_SHOWN = 5


@dataclass(frozen=True)
class _Inspect:
    """Show which checkpoints a run has, whether they are whole, and what is in one of them, or in an exported file."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run, or of a checkpoint, or an exported file."""
    checkpoint: Literal["last", "best"] | None = None
    """Which of the run's checkpoints; None for the last."""
    json: Flag = False
    """Print one JSON object in place of a table and lines."""


def main(args: Sequence[str]) -> int:
    """Show what a checkpoint holds: model, classes, metrics, settings, data, versions."""
    options = parse(_Inspect, args, "inspect")
    from convnext.runs import inspection
    from convnext.weights.files import exported_file

    if file := exported_file(options.folder):
        if options.checkpoint:
            raise SettingsError(f"--checkpoint is of a run, and {file} is an exported file: leave it out")
        return _show_exported(file, options.json)
    chosen, stored = inspection.find(options.folder, options.checkpoint or "last")
    contents = inspection.read(chosen)
    if options.json:
        values = contents.as_dict() | {"checkpoints": [one.as_dict() for one in stored]}
        print(json.dumps(_finite(values), allow_nan=False))
        return 0
    rows = Table("checkpoint", "condition", "size", "links")
    for one in stored:
        rows.add_row(one.path.name, one.condition, f"{one.size / 1e6:,.1f} MB", ", ".join(one.links))
    print_table(rows)
    facts = {"checkpoint": f"{contents.path}, format {contents.format}"}
    for fact, value in (facts | _about_model(contents.info, contents.parameters) | _about_training(contents)).items():
        if value:
            show(f"{fact}: {value}")
    for problem in contents.problems:
        show(f"note: {problem}")
    return 0


def _finite(value: Any) -> Any:
    """JSON values with null for numbers that JSON has none of: a loss may be infinite."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show_exported(file: Path, as_json: bool) -> int:
    from convnext.inference.backends import read_info

    info = read_info(file)
    if as_json:
        print(info.model_dump_json())
        return 0
    inside = "uint8 (N, H, W, C) of any size" if info.preprocessing else "normalised float32 (N, C, H, W)"
    facts = {
        "exported file": f"{file}, by convnext {info.version}",
        "precision": info.precision,
        "layers left in float": ", ".join(info.float_layers),
        "takes": inside,
        **_about_model(info.model),
        "licence of the weights it began from": info.licence,
        "data set": info.data.name,
        "images' digests": _digests(info.fingerprints),
    }
    for fact, value in facts.items():
        if value:
            show(f"{fact}: {value}")
    return 0


def _digests(fingerprints: Mapping[str, str]) -> str:
    return assignments({name: value[:12] for name, value in fingerprints.items()})


def _about_model(info: "ModelInfo | None", parameters: int | None = None) -> dict[str, str]:
    """Lines on a model, by what they are about; none where it is not known."""
    from convnext.models import registry

    if info is None:
        return {}
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (info.mean, info.std))
    channels = f"{info.channels} channel" + "s" * (info.channels > 1)
    size = "" if parameters is None else f", {parameters:,} parameters"
    return {
        "model": registry.describe(info.model) + size,
        "classes": f"{len(info.classes):,}: {few(info.classes, _CLASSES_SHOWN)}",
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
    changes = assignments(contents.changes) or ("as in the recipe" if settings and settings.recipe else "the defaults")
    best = f"top-1 {percent(state.best_top1)} on validation, at step {state.best_step:,}" if state.best_step else ""
    return {
        "step": step,
        "last epoch": assignments({name: f"{value:.4g}" for name, value in state.metrics.items()}),
        "best": best,
        "skipped steps": str(state.skipped_in_all or ""),
        "recipe": recipe,
        "settings": changes if settings else "",
        "images' digests": _digests(state.fingerprints),
        "commit": versions.pop("commit", ""),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
