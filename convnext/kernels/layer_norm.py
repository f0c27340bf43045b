"""Layer normalization of feature maps with our kernel, and its gradient, from and to float32 or bfloat16."""

from typing import Any

import torch
from torch import Tensor

from convnext.kernels.build import compiled, is_half, refuse_second_derivative

_SECTIONS = 16  # groups of lines whose gradients are summed apart, for as many threads


def layer_norm_2d(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Normalize ``(N, C, H, W)`` over the channels: the same shape, of the type asked for.

    Where the library is compiled; ``x`` and ``dtype`` are float32 or bfloat16, and the sums are float32.
    """
    return layer_norm_patches(x, weight, bias, eps, dtype, 1).permute(0, 3, 1, 2)


def layer_norm_patches(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, patch: int) -> Tensor:
    """The same, with the values of each square of ``patch`` by ``patch`` pixels in a row:
    ``(N, H / patch, W / patch, patch * patch * C)``. Height and width are multiples of ``patch``."""
    n, _, h, w = x.shape
    y: Tensor = _LayerNorm2d.apply(x, weight, bias, eps, dtype, patch)
    return y.view(n, h // patch, w // patch, -1)


def normalized(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, patch: int) -> Tensor:
    """The values of `layer_norm_patches` in one dimension, without gradient, of an ``x`` in channels_last."""
    n, c, h, w = x.shape
    y = x.new_empty(x.numel(), dtype=dtype)
    sizes = is_half(x), is_half(y), n * h, w, c, patch, float(eps)
    compiled()("layer_norm_forward", *sizes, x, _wide(weight), _wide(bias), y)
    return y


class _LayerNorm2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, patch: int
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        n, c, h, w = x.shape
        ctx.sizes, ctx.bias_dtype = (n * h, w, c, patch, float(eps)), bias.dtype
        return normalized(x, weight, bias, eps, dtype, patch)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, weight = ctx.saved_tensors
        lines, c = ctx.sizes[0], ctx.sizes[2]
        dy, dx = dy.contiguous(), torch.empty_like(x)
        sections = min(lines, _SECTIONS)
        sums = x.new_empty(sections, 2, c, dtype=torch.float32)
        arguments = x, _wide(weight), dy, dx, sections, sums
        compiled()("layer_norm_backward", is_half(x), is_half(dy), *ctx.sizes, *arguments)
        dweight, dbias = sums.sum(0)
        return dx, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype), None, None, None


def _wide(x: Tensor) -> Tensor:
    return x.float().contiguous()
