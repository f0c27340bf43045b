"""Weights into a model, and out into a file: complete, or not at all."""

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convnext.config import ModelSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.storage.files import writing
from convnext.weights import released as weights
from convnext.weights.catalogue import SUFFIXES, Weights, find, is_weights_file
from convnext.weights.layouts import convert, is_official


def start_from(model: nn.Module, settings: ModelSettings, num_classes: int) -> str | None:
    """Load the weights that the settings name into the model, which was built from them; returns a line that says what
    was left out of them, or None.

    Resolved, ``settings.weights`` is a released tag, or a file with one of `convnext.weights.catalogue.SUFFIXES`: of a
    ConvNeXt in any layout, of another model under its own names.

    Raises:
        UserError: no such weights, or they cannot be fetched or read, or do not fit the model.
    """
    assert settings.weights is not None
    channels, own = settings.in_channels or 3, model.state_dict()
    classifier = {"head.weight", "head.bias"}
    if not is_weights_file(settings.weights):
        state, _, note = weights.load_released(settings.name, settings.weights, num_classes, channels)
    elif is_official(own):
        state, note = weights.adapt_head(official_state(Path(settings.weights)), num_classes)
        state = weights.adapt_input_channels(state, channels)
    else:
        state = weights.read_foreign(Path(settings.weights))
        classifier = _other_classifier(state, own, num_classes)
        note = weights.left_out(len(state[min(classifier)]), num_classes) if classifier else None
        state = {name: tensor for name, tensor in state.items() if name not in classifier}
    load_state(model, state, settings.weights, may_miss=classifier if note else ())
    return note and f"{settings.weights}: {note}"


def _other_classifier(state: dict[str, Tensor], own: dict[str, Tensor], num_classes: int) -> set[str]:
    """Names of tensors that differ in nothing but the number of classes, their first dimension, from the model's."""
    return {
        name
        for name, tensor in own.items()
        if name in state
        and tensor.shape[:1] == (num_classes,) != state[name].shape[:1]
        and tensor.shape[1:] == state[name].shape[1:]
    }


def official_state(path: Path) -> dict[str, Tensor]:
    """A checkpoint file of any layout, under our names; CheckpointError where it is of none, or cannot be read."""
    return convert(weights.read_foreign(path), to="official")


def released(settings: ModelSettings) -> Weights | None:
    """The catalogue's entry of the released weights that the settings name, if they name any."""
    if settings.weights is None or is_weights_file(settings.weights):
        return None
    return find(settings.name, settings.weights)


def load_state(model: nn.Module, state: dict[str, Tensor], origin: object, may_miss: Collection[str] = ()) -> None:
    """Load tensors from ``origin`` into the model; CheckpointError where they do not `check_fit`."""
    check_fit(model, state, origin, may_miss)
    model.load_state_dict(state, strict=False)


def check_fit(model: nn.Module, state: dict[str, Tensor], origin: object, may_miss: Collection[str] = ()) -> None:
    """Refuse tensors from ``origin`` unless every name and shape is as the model has it, but for names it ``may_miss``.

    Raises:
        CheckpointError: missing, unexpected or other-shaped tensors; the message names the first few.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and name not in may_miss]
    problems = [f"missing {name}" for name in missing]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{origin} does not fit the model: {'; '.join(problems[:3])}{more}")


def check_target(path: Path) -> None:
    """Refuse, with a SettingsError, a file that `write` could not write, before there is work to lose."""
    if path.suffix not in SUFFIXES:
        raise SettingsError(f"{path}: a weights file ends in {', '.join(SUFFIXES)}")
    if path.exists():
        raise SettingsError(f"{path} exists already: choose a new name")
    if not path.parent.is_dir():
        raise SettingsError(f"folder {path.parent} is not there: make it first")


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a new weights file: safetensors, or PyTorch's with the tensors under ``model`` as the authors have it."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with writing(path) as unfinished:
        if path.suffix == ".safetensors":
            save_file(contiguous, unfinished)
        else:
            torch.save({"model": contiguous}, unfinished)
