"""A run's checkpoints: atomic, complete, and opened without executing anything.

``checkpoints/step-<n>/`` holds ``model.safetensors`` (the weights to use: the moving average where there is one),
``model.json`` (how to use them), ``training.safetensors`` and ``training.json`` (how to go on). The links ``last``
and ``best`` point at such folders. A folder gets its name, and a link its target, in one atomic rename after the
contents have reached the disk: what is visible is complete.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from torch import Tensor, nn

from convnext.config import ModelSettings, RunSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.files import sync
from convnext.models.pretrained import load_state

FORMAT = 2


class ModelInfo(BaseModel):
    """All that is needed to use the weights.

    Attributes:
        model: resolved settings of the architecture.
        classes: class names in the order of the logits.
        mean: channel means of the training data, on a scale of 0 to 1.
        std: channel standard deviations on that scale.
        image_size: side of the images in pixels.
        center_crop: share of the resized shorter side that is kept.
    """

    model_config = ConfigDict(frozen=True)

    model: ModelSettings
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    center_crop: float

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)


class TrainingState(BaseModel):
    """Where a run stands, after ``step`` optimizer steps, with the sums of the epoch under way."""

    format: int = FORMAT
    settings: RunSettings
    versions: dict[str, str] = {}
    step: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    images: int = 0
    seconds: float = 0.0
    unreadable: int = 0
    best_step: int | None = None
    best_top1: float | None = None


def save(
    folder: Path,
    weights: dict[str, Tensor],
    info: ModelInfo,
    training: dict[str, Tensor],
    state: TrainingState,
) -> None:
    """Write a checkpoint into ``folder`` (a run's ``checkpoints``), point ``last`` (and ``best``, where this step is
    the best) at it, and remove those that nothing points at.

    Raises:
        CheckpointError: the disk is full or not writable; the checkpoints before stay as they were.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = _unused(folder / f"step-{state.step:08d}")
    unfinished = folder / f".{target.name}.tmp"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(_plain(weights), unfinished / "model.safetensors")
        save_file(_plain(training), unfinished / "training.safetensors")
        (unfinished / "model.json").write_text(info.model_dump_json(indent=2), encoding="utf-8")
        (unfinished / "training.json").write_text(state.model_dump_json(indent=2), encoding="utf-8")
        for path in [*unfinished.iterdir(), unfinished]:
            sync(path)
        unfinished.rename(target)
        sync(folder)
        _point(folder / "last", target)
        if state.best_step == state.step:
            _point(folder / "best", target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"cannot write checkpoint {target}: {_reason(error)}; the one before is untouched: free space, "
            f"then continue with --resume"
        ) from error
    kept = {link.resolve() for name in ("last", "best") if (link := folder / name).exists()}
    for path in folder.glob("step-*"):
        if path.resolve() not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _unused(path: Path) -> Path:
    """``path``, or a numbered one beside it: a folder that a link may point at is never changed."""
    candidates = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in candidates if not other.exists())


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _point(link: Path, target: Path) -> None:
    unfinished = link.with_name(f".{link.name}.tmp")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target.name, target_is_directory=True)
    unfinished.replace(link)
    sync(link.parent)


def find(run: Path, name: str = "last") -> Path:
    """The folder of a run's checkpoint ``name``.

    Raises:
        CheckpointError: no such run, or it has no such checkpoint.
    """
    if not run.is_dir():
        raise CheckpointError(f"run folder {run} is {'not a folder' if run.exists() else 'not there'}")
    folder = run / "checkpoints" / name
    if not folder.is_dir():
        if not (run / "checkpoints").is_dir():
            raise CheckpointError(f"{run} has no checkpoint: it is no run's folder, or its training never saved one")
        there = sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_symlink())
        raise CheckpointError(f"{run} has no checkpoint {name!r}; it has: {', '.join(there) or 'none'}")
    return folder


def load_model(folder: Path) -> tuple[nn.Module, ModelInfo]:
    """The model of a checkpoint, with its weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the model.
    """
    from convnext.models import registry

    info = read_json(folder / "model.json", ModelInfo)
    model = registry.build(info.model, len(info.classes))
    load_weights(model, folder / "model.safetensors")
    return model.eval(), info


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into the model, every name and shape as the model has it.

    Raises:
        CheckpointError: missing, damaged or other tensors; the message names the first few.
    """
    load_state(model, read_tensors(path), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from None


def read_json(path: Path, kind: type[Any]) -> Any:
    """A JSON file as the pydantic model ``kind``.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError, SettingsError) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from None


def read_fingerprints(run: Path) -> dict[str, str]:
    """Digests of the images that the run had, by split.

    Raises:
        CheckpointError: the run's ``splits.json`` is missing or damaged.
    """
    fingerprints: dict[str, str] = read_json(run / "splits.json", RootModel[dict[str, str]]).root
    return fingerprints


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]
