"""Released weights, fetched and fitted to a model. Importing it is cheap: no torch."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from convnext.errors import CheckpointError
from convnext.storage.downloads import cache_folder, check_reachable, download
from convnext.weights.catalogue import find
from convnext.weights.files import read_convnext

if TYPE_CHECKING:
    from torch import Tensor


def imagenet_classes() -> tuple[str, ...]:
    """The English names of ImageNet-1k's classes, in the order of the logits."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def fetch(name: str, tag: str) -> Path:
    """The file with the released weights of a model's name and tag, as for `find`, downloaded once into the cache.

    Raises:
        UserError: no such weights, or they cannot be fetched.
    """
    weights = find(name, tag)
    return download(weights.url, _folder(), weights.sha256)


def fetch_quickly(name: str, tag: str) -> None:
    """Have the released weights in the cache and see that they can be read. Raises UserError where that cannot be;
    within seconds, where there is no network."""
    weights = find(name, tag)
    if not is_cached(name, tag):
        check_reachable(weights.url)
        download(weights.url, _folder(), weights.sha256, retries=1, timeout=10, keep_partial=True)
    read_convnext(fetch(name, tag))


def is_cached(name: str, tag: str) -> bool:
    """Whether the released weights have been downloaded."""
    return (_folder() / PurePosixPath(find(name, tag).url).name).is_file()


def _folder() -> Path:
    return cache_folder() / "weights"


def adapt_input_channels(state: "dict[str, Tensor]", in_channels: int) -> "dict[str, Tensor]":
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
    import torch

    order = torch.arange(in_channels) % channels
    return {**state, key: old[:, order] * (channels / in_channels)}
