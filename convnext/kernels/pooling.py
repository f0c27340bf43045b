"""Max-pooling with our kernels, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from convnext.kernels.build import compiled, is_half, refuse_second_derivative

MOST_KERNEL_SIZE = 16  # of a square, whose positions are counted in a byte


def max_pool2d(x: Tensor, kernel_size: int) -> Tensor:
    """The largest value of each square, of channels ``(N, C, H, W)``: ``(N, C, H // kernel_size, W // kernel_size)``.

    The same as PyTorch's, to the bit, with its gradient, for float32 and bfloat16, a ``kernel_size`` up to
    `MOST_KERNEL_SIZE`, and an ``x`` of at least that height and width.
    """
    y: Tensor = _MaxPool2d.apply(x, kernel_size)
    return y


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, c, h, w = ctx.shape = x.shape
        y = _empty((n, c, h // kernel_size, w // kernel_size), x.dtype)
        at = _empty(y.shape, torch.uint8)
        compiled()("max_pool_forward", x, is_half(x), y, at, n, h, w, c, kernel_size)
        ctx.save_for_backward(at)
        ctx.kernel_size = kernel_size
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        (at,) = ctx.saved_tensors
        n, c, h, w = ctx.shape
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = _empty((n, c, h, w), dy.dtype)
        compiled()("max_pool_backward", dy, is_half(dy), dx, at, n, h, w, c, ctx.kernel_size)
        return dx, None


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
