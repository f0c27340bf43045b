"""A run's checkpoints: atomic, complete, and opened without executing anything.

``checkpoints/step-<n>/`` holds ``model.safetensors`` (the weights to use: the moving average where there is one),
``model.json`` (how to use them), ``training.safetensors`` and ``training.json`` (how to go on), and ``sha256.json``,
the digests of these four. The links ``last`` and ``best`` point at such folders. A folder gets its name, and a link its
target, in one atomic rename after the contents have reached the disk: what is visible is complete.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from convnext.config import RunSettings
from convnext.errors import CheckpointError, DataError, SettingsError, reason
from convnext.storage.files import digest, sync
from convnext.weights.model_info import ModelInfo, read_json, read_object, renamed

if TYPE_CHECKING:  # what needs no tensors, such as a list of runs, does not wait for torch
    from torch import Tensor, nn

FORMAT = 3
READABLE = (2, 3)  # formats that a run can go on from

_DIGESTS = "sha256.json"


class TrainingState(BaseModel):
    """Where a run stands, after ``step`` optimizer steps, with the sums of the epoch under way.

    Attributes:
        format: of the checkpoint; see `FORMAT`.
        settings: the run's, resolved.
        versions: of the libraries that matter, and the commit of the folder that training was started in.
        fingerprints: digests of the images, by split.
        metrics: of the last epoch that ended; a loss may be infinite.
        skipped: steps in a row, up to this one, that were left out because of numbers that are not finite.
        scaler: state of the gradient scaler of fp16.
        unvalidated: whether this step ended an epoch, and the run was stopped in the validation of it.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    format: int = FORMAT
    settings: RunSettings
    versions: dict[str, str] = {}
    fingerprints: dict[str, str] = {}
    metrics: dict[str, float] = {}
    step: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    images: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_all: int = 0
    scaler: dict[str, int | float] = {}  # an interval of 2000.0 steps is refused by the scaler
    unvalidated: bool = False
    best_step: int | None = None
    best_top1: float | None = None

    def means(self) -> dict[str, float]:
        """Loss and accuracy over the images of the epoch under way; nothing where there are none."""
        if not self.images:
            return {}
        return {"train_loss": self.loss_sum / self.images, "train_top1": self.correct / self.images}

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Keep the numbers of the epoch that ended, and begin the next one's sums."""
        self.metrics, self.unvalidated = metrics, False
        self.loss_sum = self.correct = self.seconds = 0.0
        self.images = 0


def save(
    folder: Path,
    weights: "dict[str, Tensor]",
    info: ModelInfo,
    training: "dict[str, Tensor]",
    state: TrainingState,
) -> None:
    """Write a checkpoint into ``folder`` (a run's ``checkpoints``), point ``last`` (and ``best``, where this step is
    the best) at it, and remove all but the newest ``settings.keep`` and those that a link points at.

    Raises:
        CheckpointError: the disk is full or not writable; the checkpoints before stay as they were.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = _unused(folder / f"step-{state.step:08d}")
    unfinished = folder / f".{target.name}.tmp"
    try:
        for left_by_a_kill in folder.glob(".step-*.tmp"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(_plain(weights), unfinished / "model.safetensors")
        save_file(_plain(training), unfinished / "training.safetensors")
        (unfinished / "model.json").write_text(info.model_dump_json(indent=2), encoding="utf-8")
        (unfinished / "training.json").write_text(state.model_dump_json(indent=2), encoding="utf-8")
        digests = {path.name: digest(path) for path in sorted(unfinished.iterdir())}
        (unfinished / _DIGESTS).write_text(json.dumps(digests, indent=2), encoding="utf-8")
        for path in [*unfinished.iterdir(), unfinished]:
            sync(path)
        unfinished.rename(target)
        sync(folder)
        sync(folder.parent)
        point_links(target, state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"cannot write checkpoint {target}: {reason(error)}; the one before is untouched: free space, "
            f"then continue with --resume"
        ) from error
    needed = {link.resolve() for name in ("last", "best") if (link := folder / name).exists()}
    newest = {_order(path)[0]: path.resolve() for path in reversed(_newest_first(folder))}  # the last of each step
    needed |= {newest[step] for step in sorted(newest, reverse=True)[: state.settings.keep]}
    for path in _newest_first(folder):
        if path.resolve() not in needed:
            shutil.rmtree(path, ignore_errors=True)


def point_links(target: Path, state: TrainingState) -> None:
    """Point ``last`` at a checkpoint, and ``best`` where it is the best; a kill right after it was written may have
    left that out."""
    for name in ("last", "best") if state.best_step == state.step else ("last",):
        link = target.with_name(name)
        if link.is_symlink() and link.readlink() == Path(target.name):
            continue
        unfinished = link.with_name(f".{name}.tmp")
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(target.name, target_is_directory=True)
        unfinished.replace(link)
        sync(link.parent)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=_order, reverse=True)


def _order(path: Path) -> tuple[int, ...]:
    """The step, and the number where that step was saved again."""
    return tuple(int(number) for number in path.name.split("-")[1:])


def is_complete(folder: Path) -> bool:
    """Whether every file of a checkpoint is what was written."""
    try:
        digests = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and all(digest(folder / name) == known for name, known in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_complete(run: Path) -> Path | None:
    """The checkpoint to go on from; None where the run has none; CheckpointError where all are damaged.

    One that a broken disk or a power cut damaged is put aside as ``damaged-…``, with a line on standard error.
    """
    folder = run / "checkpoints"
    damaged: list[Path] = []
    for path in _newest_first(folder):
        if is_complete(path):
            for other in damaged:
                print(f"{other} is damaged: going on from {path.name}", file=sys.stderr)
                other.rename(_unused(folder / f"damaged-{other.name}"))
            return path
        damaged.append(path)
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged: leave --resume out to start a new run, or copy a whole one back"
        )
    return None


def _unused(path: Path) -> Path:
    """``path``, or a numbered one beside it: a folder that a link may point at is never changed."""
    names = (f"{path.name}-{number}" if number > 1 else path.name for number in itertools.count(1))
    return next(other for other in map(path.with_name, names) if not other.exists())


def _plain(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def find(run: Path, name: str = "last") -> Path:
    """The folder of a run's checkpoint ``name``; CheckpointError where the run or the checkpoint is not there."""
    if not run.is_dir():
        raise CheckpointError(f"run folder {run} is {'not a folder' if run.exists() else 'not there'}")
    folder = run / "checkpoints" / name
    if not folder.is_dir():
        if not (run / "checkpoints").is_dir():
            raise CheckpointError(f"{run} has no checkpoint: it is no run's folder, or its training never saved one")
        there = sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_symlink())
        raise CheckpointError(f"{run} has no checkpoint {name!r}; it has: {', '.join(there) or 'none'}")
    return folder


def load_model(folder: Path, model: "nn.Module | None" = None) -> "tuple[nn.Module, ModelInfo]":
    """The model of a checkpoint's folder, with its weights, in evaluation mode, on the CPU: ``model``, if a program
    trained a module of its own, or else that of the settings. CheckpointError where a file is missing, damaged, or does
    not fit."""
    from convnext.models import registry
    from convnext.weights.loading import load_state

    info = read_json(folder / "model.json", ModelInfo)
    model = registry.build(info.model, len(info.classes)) if model is None else model
    path = folder / "model.safetensors"
    load_state(model, read_tensors(path), path)
    return model.eval(), info


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """A safetensors file; CheckpointError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None


def read_settings(path: Path) -> dict[str, Any]:
    """A run's ``settings.json``, or a part of one, under today's names; for `convnext.config.Settings.replace`.
    CheckpointError where it cannot be read; SettingsError, with its path, for settings that cannot be."""
    values: dict[str, Any] = renamed(read_object(path))
    try:
        RunSettings().replace(**values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return values


def read_state(folder: Path) -> TrainingState:
    """Where the run of a checkpoint stands; CheckpointError where it cannot be read, or is of another format."""
    path = folder / "training.json"
    written = read_object(path).get("format")
    if written not in READABLE:
        raise CheckpointError(
            f"{folder} has checkpoint format {written}, and this version goes on from format {FORMAT}: its weights can "
            f"be evaluated and used as they are; to train on, use the version that wrote it, or start from them with "
            f"--model.weights {folder / 'model.safetensors'}"
        )
    return read_json(path, TrainingState)


def check_same_images(state: TrainingState, fingerprints: dict[str, str], run: Path) -> None:
    """Refuse, with a DataError, to go on with other images than before."""
    changed = [name for name, digest in fingerprints.items() if state.fingerprints.get(name) != digest]
    if changed:
        raise DataError(
            f"the {' and '.join(changed)} images have changed since {run} was started, so it cannot go on: restore "
            f"them, or leave --resume out to start a new run"
        )


def read_fingerprints(folder: Path) -> dict[str, str]:
    """Digests of the images that the run of a checkpoint, of any format, had, by split."""
    fingerprints: dict[str, str] = read_object(folder / "training.json").get("fingerprints", {})
    return fingerprints
