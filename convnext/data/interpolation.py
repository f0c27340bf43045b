"""Bicubic, antialiased resizing of 8-bit pixels, by torch or by numpy, which give the same bits. Importing it is cheap:
no torch."""

import sys
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]

_BAND = 2**20  # numbers that are held as float64 at once
_BLOCK = 8  # pixels of a row that are computed together


def interpolate(pixels: Pixels, size: Sequence[int] | None, scales: Sequence[float] | None = None) -> Pixels:
    """Pixels ``(H, W, C)`` in another size: by torch where that is loaded, and else by numpy, for the seconds that
    importing torch takes.

    Args:
        pixels: the image.
        size: height and width of the result; or None.
        scales: where ``size`` is None, what its height and width are multiplied with, rounded down to whole pixels.
    """
    return (torch_interpolate if "torch" in sys.modules else numpy_interpolate)(pixels, size, scales)


def torch_interpolate(pixels: Pixels, size: Sequence[int] | None, scales: Sequence[float] | None = None) -> Pixels:
    """`interpolate` by torch; what transforms.v2 comes to for uint8 on CPU, without the way there."""
    import torch
    from torch.nn import functional

    # torch's kernel is fastest from HWC to HWC, the order in which images are decoded and batched.
    images = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    size, scales = size and list(size), scales and list(scales)
    resized = functional.interpolate(images, size, scales, mode="bicubic", antialias=True)
    rows: Pixels = resized.permute(0, 2, 3, 1).numpy()[0]
    return rows


def numpy_interpolate(pixels: Pixels, size: Sequence[int] | None, scales: Sequence[float] | None = None) -> Pixels:
    """`interpolate` by numpy, in the steps of torch's kernel: along rows, then along columns, rounded in between, with
    weights in whole numbers of 16 bits."""
    planes = pixels.transpose(2, 0, 1)
    for axis in (1, 0):
        before = pixels.shape[axis]
        after, step = before, 1.0
        if size:
            after, step = size[axis], before / size[axis]
        elif scales:
            after, step = int(before * scales[axis]), 1 / scales[axis]
        if after != before:
            rows = _resampled(planes.reshape(-1, before), after, step)
            planes = rows.reshape(*planes.shape[:2], after)
        planes = planes.transpose(0, 2, 1)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _resampled(rows: Pixels, after: int, step: float) -> Pixels:
    """Rows ``(N, before)`` to ``(N, after)``, whose pixels are ``step`` of those before wide."""
    starts, weights, precision = windows(rows.shape[1], after, step)
    blocks = [
        _block(starts[column : column + _BLOCK], weights[column : column + _BLOCK])
        for column in range(0, after, _BLOCK)
    ]
    resized = np.empty((len(rows), after), np.uint8)
    band = max(_BAND // max(rows.shape[1], after), 1)
    for top in range(0, len(rows), band):
        values = rows[top : top + band].astype(np.float64)  # exact: sums stay far below 2**53
        sums = np.empty((len(values), after))
        for column, (start, matrix) in zip(range(0, after, _BLOCK), blocks, strict=True):
            np.matmul(values[:, start : start + len(matrix)], matrix, out=sums[:, column : column + _BLOCK])
        resized[top : top + band] = np.clip(sums * 2.0**-precision + 0.5, 0, 255)
    return resized


def windows(before: int, after: int, step: float) -> tuple[list[int], list[NDArray[np.float64]], int]:
    """For each pixel of a row of the result the first pixel that it sees, and the weights of that and those behind it;
    and by how many binary digits the weights are too large."""
    scale = max(step, 1.0)
    centers = step * (np.arange(after) + 0.5)
    starts = np.maximum((centers - 2 * scale + 0.5).astype(np.int64), 0)
    lengths = np.minimum((centers + 2 * scale + 0.5).astype(np.int64), before) - starts
    offsets = np.arange(lengths.max())
    x = np.abs((offsets + starts[:, None] - centers[:, None] + 0.5) * (1 / scale))
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys's cubic of a = -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[offsets >= lengths[:, None]] = 0
    weights /= weights.cumsum(1)[:, -1:]  # one after the other, as torch adds them
    largest = float(weights.max())
    precision = next((p for p in range(22) if int(0.5 + largest * 2 ** (p + 1)) >= 2**15), 22)
    whole = np.trunc(weights * 2**precision + np.copysign(0.5, weights))
    return starts.tolist(), [row[:length] for row, length in zip(whole, lengths, strict=True)], precision


def _block(starts: list[int], weights: list[NDArray[np.float64]]) -> tuple[int, NDArray[np.float64]]:
    """The first pixel that some neighbours in the result see, and the matrix that makes them of that and those behind
    it."""
    ends = [start + len(window) for start, window in zip(starts, weights, strict=True)]
    matrix = np.zeros((max(ends) - starts[0], len(starts)))
    for column, (start, end, window) in enumerate(zip(starts, ends, weights, strict=True)):
        matrix[start - starts[0] : end - starts[0], column] = window
    return starts[0], matrix
