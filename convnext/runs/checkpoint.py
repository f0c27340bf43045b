"""A run's checkpoints: atomic, complete, and opened without executing anything.

``checkpoints/step-<n>/`` holds ``model.safetensors`` (the weights to use: the moving average where there is one),
``model.json`` (how to use them), ``training.safetensors`` and ``training.json`` (how to go on), and ``sha256.json``,
the digests of these four. The links ``last`` and ``best`` point at such folders. A folder gets its name, and a link its
target, in one atomic rename after the contents have reached the disk: what is visible is complete.
"""

import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from convnext.config import RunSettings
from convnext.errors import CheckpointError, DataError, SettingsError, reason
from convnext.output import say
from convnext.runs.early_stopping import is_better, is_over
from convnext.storage.files import DIGESTS, check_whole, digest, sync, usual_mode
from convnext.weights.files import checkpoint_folder
from convnext.weights.model_info import ModelInfo, read_json, read_object, renamed

if TYPE_CHECKING:  # what needs no tensors, such as a list of runs, does not wait for torch
    from torch import Tensor, nn

FORMAT = 3
READABLE = (2, 3)  # formats that a run can go on from

_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})(?:-([2-9]|[1-9][0-9]+))?")  # of a checkpoint's folder
_Count = Annotated[int, Field(ge=0)]


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
        best_value: of the validation metric that `monitor` names, at `best_step`; None in a run that is older, whose
            metric is `best_top1`.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    format: int = FORMAT
    settings: RunSettings
    versions: dict[str, str] = {}
    fingerprints: dict[str, str] = {}
    metrics: dict[str, float] = {}
    step: _Count = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    images: _Count = 0
    seconds: float = 0.0
    skipped: _Count = 0
    skipped_in_all: _Count = 0
    scaler: dict[str, int | float] = {}  # an interval of 2000.0 steps is refused by the scaler
    unvalidated: bool = False
    best_step: int | None = None
    best_top1: float | None = None
    best_value: float | None = None

    def means(self) -> dict[str, float]:
        """Loss and accuracy over the images of the epoch under way; nothing where there are none."""
        if not self.images:
            return {}
        return {"train_loss": self.loss_sum / self.images, "train_top1": self.correct / self.images}

    def note_validation(self, values: dict[str, float]) -> None:
        """Take this step as the best one where its validation is, by the metric of the settings among ``values``."""
        value, best = values[self.settings.monitor], self.best_top1 if self.best_value is None else self.best_value
        if is_better(value, best, self.settings):
            self.best_step, self.best_top1, self.best_value = self.step, values["top1"], value

    def is_over(self, steps_per_epoch: int) -> bool:
        """Whether the run stops early after this step, which has been validated where it ends an epoch."""
        epoch, steps = divmod(self.step, steps_per_epoch)
        return not steps and is_over(epoch, (self.best_step or 0) // steps_per_epoch, self.settings)

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
        folder.mkdir(exist_ok=True)  # in a run's folder, which is there
        for path in folder.iterdir():
            if path.name.startswith(".") and path.suffix == ".tmp" and _order(path.with_name(path.name[1:-4])):
                shutil.rmtree(path, ignore_errors=True)  # left by a kill
        unfinished = _unused(unfinished)
        unfinished.mkdir()
        for name, tensors in (("model", weights), ("training", training)):
            with usual_mode(unfinished / f"{name}.safetensors") as path:
                save_file(_plain(tensors), path)
        (unfinished / "model.json").write_text(info.model_dump_json(indent=2), encoding="utf-8")
        (unfinished / "training.json").write_text(state.model_dump_json(indent=2), encoding="utf-8")
        write_digests(unfinished)
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
    newest = {_order(path)[:1]: path.resolve() for path in reversed(_newest_first(folder))}  # the last of each step
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
        if link.is_dir() and not link.is_symlink():  # where a run was copied, links may have become what they point at
            link.rename(_unused(link.with_name(f"copied-{name}")))
        unfinished = link.with_name(f".{name}.tmp")
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(target.name, target_is_directory=True)
        unfinished.replace(link)
        sync(link.parent)


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder; what else lies there is nobody's business here."""
    entries = folder.iterdir() if folder.is_dir() else ()
    saved = [path for path in entries if _order(path) and path.is_dir() and not path.is_symlink()]
    return sorted(saved, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, ...]:
    """The step, and the number where that step was saved again; nothing where the name is not a checkpoint's."""
    match = _NAME.fullmatch(path.name)
    return tuple(int(number) for number in match.groups() if number) if match else ()


def write_digests(folder: Path) -> None:
    """Write down what is in each file of a folder, for `is_complete` and `convnext.storage.files.check_whole`."""
    digests = {path.name: digest(path) for path in sorted(folder.iterdir())}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Whether every file of a checkpoint is what was written."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and all(digest(folder / name) == known for name, known in digests.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def newest_complete(run: Path) -> Path | None:
    """The checkpoint to go on from; None where the run has none; CheckpointError where all are damaged.

    One that a broken disk or a power cut damaged is put aside as ``damaged-…``, with a line on standard error.
    """
    folder = run / "checkpoints"
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: move it away")
    damaged: list[Path] = []
    for path in _newest_first(folder):
        if is_complete(path):
            for other in damaged:
                say(f"{other} is damaged: going on from {path.name}")
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
    return next(other for other in map(path.with_name, names) if not os.path.lexists(other))


def _plain(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


find = checkpoint_folder  # of a run's folder and ``"last"`` or ``"best"``


def load_model(folder: Path, model: "nn.Module | None" = None) -> "tuple[nn.Module, ModelInfo]":
    """The model of a checkpoint's folder, with its weights, in evaluation mode, on the CPU: ``model``, if a program
    trained a module of its own, or else that of the settings. CheckpointError where a file is missing, damaged, or does
    not fit."""
    from convnext.models import registry
    from convnext.models.variants import VARIANTS
    from convnext.weights.loading import check_fit, load_state

    check_whole(folder, "model.json", "model.safetensors")
    info = read_json(folder / "model.json", ModelInfo)
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    if model is None:
        if info.model.name in VARIANTS and "stem.0.weight" in tensors:  # of a folder for the Hub
            from convnext.weights.layouts import convert

            tensors = convert(tensors, "official", "timm")
        model = outline(info)
        check_fit(model, tensors, path)  # before there is memory for a model whose sizes may be anything
        if info.model.name in VARIANTS:  # all that it holds is in the file: it need not draw millions of numbers first
            types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
            own = {name: tensor.to(types[name], copy=True) for name, tensor in tensors.items()}
            model.load_state_dict(own, assign=True)
            return model.eval(), info
        model = registry.build(info.model, len(info.classes))
    load_state(model, tensors, path)
    return model.eval(), info


def outline(info: ModelInfo) -> "nn.Module":
    """The model without memory for its weights, on the meta device; CheckpointError where there can be no such."""
    import torch

    from convnext.models import registry

    try:
        with torch.device("meta"):
            return registry.build(info.model, len(info.classes))
    except (RuntimeError, TypeError) as error:  # of a size that has no number
        raise CheckpointError(f"no model can have these settings: {reason(error)}") from None


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
    """Digests of the images that the run of a checkpoint, of any format, had, by split; none where it was copied
    without what it takes to go on."""
    path = folder / "training.json"
    fingerprints = read_object(path).get("fingerprints") if path.is_file() else None
    return fingerprints if isinstance(fingerprints, dict) else {}
