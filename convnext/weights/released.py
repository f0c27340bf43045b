"""Released weights, fetched and fitted to a model."""

from pathlib import Path

import torch
from torch import Tensor

from convnext.errors import CheckpointError
from convnext.storage.downloads import cache_folder, download
from convnext.weights.catalogue import find


def imagenet_classes() -> tuple[str, ...]:
    """The English names of ImageNet-1k's classes, in the order of the logits."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def fetch(name: str, tag: str, folder: Path | None = None, progress: bool = True) -> Path:
    """The file with the released weights of a model's name and tag, as for `find`, downloaded once into ``folder`` (by
    default one in the cache).

    Raises:
        UserError: no such weights, or they cannot be fetched.
    """
    weights = find(name, tag)
    return download(weights.url, folder or cache_folder() / "weights", weights.sha256, progress)


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
