"""Depthwise filters that begin as a trained network's look: drawn with the covariance of its own.

The covariance of trained depthwise filters has a structure that serves networks of other depths and widths, too:
filters drawn from a normal distribution with it have that from the first step on (Trockman, Willmott and Kolter 2022,
arXiv:2210.03651).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from convnext.errors import CheckpointError, SettingsError
from convnext.models.convnext import Block, ConvNeXt
from convnext.weights.files import read_convnext, weights_file
from convnext.weights.layouts import convert


def draw_filters(model: nn.Module, path: Path) -> str:
    """Draw all depthwise filters of a model anew, from torch's global generator; those of a stage with the covariance
    around zero of the filters in the other network's stage at the same fraction of its depth.

    Args:
        model: a ConvNeXt.
        path: a run's folder, or a file with a ConvNeXt's weights, of kernels of the model's size.

    Returns:
        A line that says it.

    Raises:
        SettingsError: a model of another family, or of another kernel size.
        CheckpointError: no weights of a ConvNeXt.
    """
    if not isinstance(model, ConvNeXt):
        raise SettingsError(f"filters_from is for ConvNeXt, not {type(model).__name__}: leave it out")
    theirs = _filters_by_stage(path)
    stages = [[block for block in stage.modules() if isinstance(block, Block)] for stage in model.stages]
    size = stages[0][0].dwconv.kernel_size[0]
    if (other := round(theirs[0].shape[1] ** 0.5)) != size:
        raise SettingsError(
            f"filters_from: those in {path} are of {other} x {other} and the model's of {size} x {size}: set "
            f"model.kernel_size to {other}, or take another network's"
        )
    for number, blocks in enumerate(stages):
        fraction = number / max(len(stages) - 1, 1)
        root = _root(theirs[round(fraction * (len(theirs) - 1))])
        for block in blocks:
            weight = block.dwconv.weight
            drawn = torch.randn(len(weight), size * size) @ root
            weight.data.copy_(drawn.view(weight.shape))
    return f"depthwise filters are drawn with the covariance of those in {path}"


def _filters_by_stage(path: Path) -> list[Tensor]:
    """``(n, k * k)`` for each stage of the network whose weights lie there."""
    file = weights_file(path)
    extract = read_convnext(file)
    tensors = convert(extract.tensors, "official", extract.layout)
    by_stage: dict[int, list[Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("stages.") and name.endswith(".dwconv.weight"):
            by_stage.setdefault(int(name.split(".")[1]), []).append(tensor.flatten(1))
    if not by_stage:
        raise CheckpointError(f"{file} has no depthwise filters")
    return [torch.cat(by_stage[stage]) for stage in sorted(by_stage)]


def _root(filters: Tensor) -> Tensor:
    """A symmetric square root of the filters' covariance around zero, ``(k * k, k * k)``."""
    covariance = filters.double().T @ filters.double() / len(filters)
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root.float()
