"""Released weights fetched and fitted to a model, and checkpoints of others, opened so that they cannot run code."""

import argparse
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from convnext.errors import CheckpointError, reason
from convnext.storage.downloads import cache_folder, download
from convnext.weights.catalogue import Weights, find
from convnext.weights.layouts import convert, unwrap


def imagenet_classes() -> tuple[str, ...]:
    """The English names of ImageNet-1k's classes, in the order of the logits."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


class Released(NamedTuple):
    """Released weights made to fit a model; ``note`` says what was left out, if anything was."""

    state: dict[str, Tensor]
    weights: Weights
    note: str | None


def load_released(
    name: str,
    tag: str,
    num_classes: int,
    in_channels: int = 3,
    folder: Path | None = None,
    progress: bool = True,
) -> Released:
    """Fetch the released weights of a model's name and tag, as for `find`, into ``folder`` (by default one in the
    cache), and fit them to a model of ``num_classes`` and ``in_channels``.

    Returns:
        Tensors under the names of `convnext.models.convnext.ConvNeXt`; without ``head.*`` where the classes differ.

    Raises:
        UserError: no such weights, they cannot be fetched, or what was fetched is no checkpoint.
    """
    weights = find(name, tag)
    path = download(weights.url, folder or cache_folder() / "weights", weights.sha256, progress)
    state, note = adapt_head(convert(read_foreign(path), to="official"), num_classes)
    return Released(adapt_input_channels(state, in_channels), weights, note)


def adapt_head(state: dict[str, Tensor], num_classes: int) -> tuple[dict[str, Tensor], str | None]:
    """The state without its classifier where that has other than ``num_classes`` classes, and a line that says so."""
    head = state.get("head.weight")
    if head is None or len(head) == num_classes:
        return state, None
    rest = {key: value for key, value in state.items() if not key.startswith("head.")}
    return rest, left_out(len(head), num_classes)


def left_out(classes: int, num_classes: int) -> str:
    """A line for weights of ``classes`` classes in a model of ``num_classes``."""
    kind = f"the model's own, of {num_classes}, starts from random weights" if num_classes else "the model has none"
    return f"the classifier of {classes} classes is left out: {kind}"


def adapt_input_channels(state: dict[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """The state with a first convolution for images of ``in_channels`` channels.

    One channel: the sum over the old channels, which gives exactly what the old model gives for that channel repeated.
    More: the old channels in turn, times their number over the new, so that responses keep their size.
    """
    key = "downsample_layers.0.0.weight"
    if key not in state:
        raise CheckpointError(f"the weights have no {key}: they are not in the layout of the authors' ConvNeXt")
    old = state[key]
    channels = old.shape[1]
    if in_channels == channels:
        return state
    if in_channels == 1:
        return {**state, key: old.sum(1, keepdim=True)}
    order = torch.arange(in_channels) % channels
    return {**state, key: old[:, order] * (channels / in_channels)}


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint made by others, safetensors or PyTorch, without running anything in it;
    CheckpointError where it is missing, damaged, or holds anything but tensors and plain containers."""
    try:
        if path.suffix == ".safetensors":
            return unwrap(load_file(path))
        # The authors' training keeps its command line, a Namespace: a container of settings.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return unwrap(torch.load(path, map_location="cpu", weights_only=True))
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
            f"cannot read {path}: it is empty, damaged, or no checkpoint of PyTorch; fetch it again"
        ) from None
