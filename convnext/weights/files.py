"""Checkpoint files: which one is meant, and what is in it, read so that nothing in it can run."""

import argparse
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import BaseModel

from convnext.errors import CheckpointError, SettingsError, did_you_mean, reason
from convnext.output import few
from convnext.storage.files import check_whole
from convnext.weights.catalogue import SUFFIXES, WEIGHTS, is_weights_file
from convnext.weights.model_info import ModelInfo, read_json

if TYPE_CHECKING:  # what reads no tensors does not wait for torch
    from torch import Tensor

    from convnext.weights.wrappers import Extract

EXPORTED = (".onnx", ".pt2", ".xml")
"""How the names of exported files end."""
_WEIGHTS, _INFO = "model.safetensors", "model.json"  # of a run's checkpoint


class _Patience(BaseModel):
    """What says by which weights a run is used, of its ``settings.json``."""

    patience: int | None = None


def usual_checkpoint(run: Path) -> str:
    """By which checkpoint a run is used where nobody says: ``"last"``; or ``"best"``, if it was to stop once it gets no
    better, and has one. CheckpointError where its settings cannot be read."""
    settings = run / "settings.json"
    stops = settings.is_file() and read_json(settings, _Patience).patience is not None
    return "best" if stops and (run / "checkpoints" / "best").is_dir() else "last"


def checkpoint_folder(path: Path, name: str | None = None) -> Path:
    """The folder of a checkpoint that a run wrote: of the run's folder ``path`` the checkpoint ``name``, None for its
    `usual_checkpoint`; or ``path`` itself, or the folder of ``path``, where that is a checkpoint or its
    ``model.safetensors``. CheckpointError where it is none of these."""
    if (path / "checkpoints").is_dir():
        name = name or usual_checkpoint(path)
        folder = path / "checkpoints" / name
        if not folder.is_dir():
            there = sorted(folder.name for folder in folder.parent.iterdir() if (folder / _INFO).is_file())
            raise CheckpointError(f"{path} has no checkpoint {name!r}; it has: {', '.join(there) or 'none'}")
        return folder
    folder = path.parent if path.is_file() and path.name == _WEIGHTS else path
    if any((folder / file).is_file() for file in (_INFO, _WEIGHTS)):
        if name not in (None, "last"):
            raise CheckpointError(f"{path} is one checkpoint, and {name!r} is for a run's folder: leave it out")
        return folder
    _refuse_exported(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder of a run or checkpoint, nor the {_WEIGHTS} in one: other files have no class "
            f"names; train from it with --model.weights {path}"
        )
    if not path.is_dir():
        if (repository := str(path).removeprefix("hf:")) != str(path):
            raise CheckpointError(
                f"predict, serve and benchmark alone take {path}: get it with hf download {repository} --local-dir "
                f"DIR, and give DIR"
            )
        raise CheckpointError(f"{'file' if path.suffix in EXPORTED else 'run folder'} {path} is not there")
    runs = sorted(str(folder.parent) for folder in path.glob("*/checkpoints"))
    advice = f": give one of the runs in it, such as {runs[0]}" if runs else ""
    raise CheckpointError(f"{path} has no checkpoint: it is no run's folder, or its training never saved one{advice}")


def exported_file(path: Path) -> Path | None:
    """The exported file that ``path`` means: itself, or where it is a folder, and not a run's or a checkpoint's, the
    one in it; None where it means something else. CheckpointError where it may be one of several."""
    if path.suffix in EXPORTED and path.is_file():
        return path
    if path.suffix == ".bin" and (graph := path.with_suffix(".xml")).is_file():
        return graph
    if not path.is_dir() or any((path / name).exists() for name in ("checkpoints", _INFO, _WEIGHTS)):
        return None
    files = sorted(file for file in path.iterdir() if file.suffix in EXPORTED and file.is_file())
    if len(files) > 1:
        raise CheckpointError(f"{path} has {len(files)} exported files: give one, {few([file.name for file in files])}")
    return files[0] if files else None


def refuse_checkpoint(name: str | None, subject: object, kind: str) -> None:
    """Refuse, with a SettingsError, a ``name`` of a run's checkpoint for what is no run, and has one set of weights.

    Args:
        name: the checkpoint's; None where nobody chose one.
        subject: what the user named.
        kind: what that is, as ``"an exported file"``.
    """
    if name is not None:
        raise SettingsError(f"--checkpoint is of a run, and {subject} is {kind}: leave it out")


def _refuse_exported(path: Path) -> None:
    if file := exported_file(path):
        raise CheckpointError(
            f"{file} is an exported file already, which predict, evaluate and inspect take; its weights are not read "
            f"back: give the run that it was made from"
        )


def weights_path(weights: str | None) -> Path | None:
    """The file or folder that ``model.weights`` names, which may be gone; None where it names none."""
    return Path(weights) if weights is not None and is_weights_file(weights) else None


def weights_file(path: Path, name: str | None = None) -> Path:
    """The file with the weights that ``path`` means: itself, or where it is a folder that of a run's checkpoint, as of
    `checkpoint_folder`. CheckpointError where there is none; SettingsError for a checkpoint of a file."""
    if path.is_dir():
        return checkpoint_folder(path, name) / _WEIGHTS
    if path.suffix in EXPORTED:
        _refuse_exported(path)
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is {'no file' if path.exists() else 'not there'}")
    refuse_checkpoint(name, path, "one file of weights")
    return path


def model_info(file: Path) -> ModelInfo | None:
    """How the weights in a `weights_file` are used, as the ``model.json`` beside it has it; None where it is not from a
    run. CheckpointError where that cannot be read."""
    info = file.with_name(_INFO)
    if file.name != _WEIGHTS or not info.is_file():
        return None
    check_whole(info.parent, _INFO)
    return read_json(info, ModelInfo)


def run_info(weights: str) -> ModelInfo | None:
    """How the weights that ``model.weights`` names are used, where they are those of a run; None for others.

    Raises:
        SettingsError: there is nothing of that name.
        CheckpointError: it is a folder without a checkpoint, or a damaged one.
    """
    if (path := weights_path(weights)) is None:
        return None
    if path.exists():
        return model_info(weights_file(path))
    if path.suffix in SUFFIXES:  # a run that goes on needs it no more
        return None
    tags = dict.fromkeys(tag for released in WEIGHTS.values() for tag in released)
    hint = f", nor a released tag of that name: {did_you_mean(weights, tags)}" if path.name == weights else ""
    raise SettingsError(f"model.weights: there is no file or folder {weights}{hint}")


def read_convnext(path: Path, key: str | None = None) -> "Extract":
    """The weights of a ConvNeXt, in any layout, in a checkpoint file; those under ``key`` where it has several.
    CheckpointError where it is missing, damaged, without such, or holds anything but tensors and plain containers."""
    from convnext.weights.layouts import names_of_layouts
    from convnext.weights.wrappers import extract

    return _explained(path, lambda: extract(_read(path), names_of_layouts(), key))


def read_own(path: Path, state: "dict[str, Tensor]", key: str | None = None) -> "Extract":
    """The weights of a model with the names of ``state``; otherwise as `read_convnext`."""
    from convnext.weights.wrappers import extract, names_of

    return _explained(path, lambda: extract(_read(path), [names_of(state)], key))


def _explained(path: Path, reading: "Callable[[], Extract]") -> "Extract":
    from safetensors import SafetensorError

    if path.name == _WEIGHTS:  # of a run's checkpoint, which has digests
        check_whole(path.parent, _WEIGHTS)
    try:
        return reading()
    except CheckpointError as error:
        raise CheckpointError(f"cannot use {path}: {error}") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None
    except Exception as error:  # damaged bytes end the reading anywhere, with any error
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"refused to open {path}: it asks for {match[1]}, and a checkpoint may hold only tensors in plain "
                f"containers; save its state_dict alone, with torch.save or as safetensors"
            ) from None
        raise CheckpointError(
            f"cannot read {path}: it is empty, damaged, or no checkpoint of PyTorch or safetensors; fetch it again"
        ) from None


def _read(path: Path) -> Any:
    """What is in the file, whatever its suffix; it is of safetensors where it starts with the length of a header."""
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            from safetensors.torch import load_file

            return load_file(path)
        file.seek(0)
        return _unpickled(file)


def _unpickled(file: BinaryIO) -> Any:
    import numpy as np
    import torch

    # Training scripts keep their command line, a Namespace, and numbers of NumPy: containers of settings.
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace, np.dtype, *numbers, *names]):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)
