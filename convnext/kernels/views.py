"""Random views of whole batches of 8-bit images with our kernels, to the bits of PyTorch's operations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convnext.kernels.build import compiled, library


def can_view(pixels: Tensor) -> bool:
    """Whether the library is compiled, and for images ``(N, H, W, C)`` like these."""
    if not pixels.is_cpu:
        return False
    loaded = library()
    return loaded is not None and pixels.shape[-1] <= loaded.lanes


@dataclass(frozen=True)
class Windows:
    """What each pixel of a resized row or column sees of it, by its length less 1.

    Attributes:
        first: ``(lengths, size)`` int64, the first pixel.
        weights: ``(lengths, size, taps)`` int32, of that and those behind it; 0 of those beyond the row.
        digits: ``(lengths,)`` int32, by how many binary digits the weights are too large.
    """

    first: Tensor
    weights: Tensor
    digits: Tensor


def resized_crops(pixels: Tensor, images: Tensor, areas: Tensor, flipped: Tensor, windows: Windows) -> Tensor:
    """Resize areas of images, along rows and then along columns, rounded in between.

    Args:
        pixels: ``(N, H, W, C)`` uint8, for which `can_view` is true.
        images: ``(n,)`` int64, which of them.
        areas: ``(n, 4)`` int64, top, left, height and width of each, within the images.
        flipped: ``(n,)`` bool, whether the result is flipped, left to right.
        windows: for all lengths of a height or width.

    Returns:
        ``(n, size, size, C)`` uint8.
    """
    size, taps = windows.weights.shape[1:]
    made = torch.empty(len(images), size, size, pixels.shape[-1], dtype=torch.uint8)
    inputs = (pixels.contiguous(), images.contiguous(), areas.contiguous(), flipped.contiguous())
    tables = windows.first, windows.weights, windows.digits
    compiled()("resized_crops", *inputs, made, *tables, taps, len(images), *pixels.shape[1:], size)
    return made


def affine(pixels: Tensor, matrices: Tensor, fill: Tensor, across: bool, down: bool) -> Tensor:
    """An affine transform of each image, as `convnext.data.batch_ops.Affine` computes it.

    Args:
        pixels: ``(n, size, size, C)`` uint8, for which `can_view` is true.
        matrices: ``(n, 2, 3)`` int32: where a pixel comes from, x and y, by its own and 1, in 2**-17 pixels; by their
            middles, counted in halves of a pixel.
        fill: ``(C,)`` int32, the colour of what is outside.
        across: whether pixels come from between two columns.
        down: whether they come from between two rows.

    Returns:
        The images, of the same shape.
    """
    pixels, made = pixels.contiguous(), torch.empty(pixels.shape, dtype=torch.uint8)
    sizes = across, down, len(pixels), *pixels.shape[2:]
    compiled()("affine", pixels, matrices.contiguous(), fill, made, *sizes)
    return made
