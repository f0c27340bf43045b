"""Depthwise convolution with our kernels, and its gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.kernels.build import compiled, is_half, refuse_second_derivative

_SECTIONS = 16  # groups of images whose gradients are summed apart, for as many threads


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel with its own kernel, at stride 1, with zeros around: the same shape.

    Where `kernels.usable` says so: ``x`` is ``(N, C, H, W)``, float32 or bfloat16, ``weight`` ``(C, 1, K, K)``, ``K``
    odd. The sums are float32; under autocast the result is bfloat16, else of ``x``'s type.
    """
    return convolve_with_shortcut(x, weight, bias)[0]


def convolve_with_shortcut(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same, and ``x`` itself for a shortcut: the gradient that comes back through it costs no pass of its own."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    y, shortcut = _DepthwiseConv2d.apply(x, weight, bias, dtype)
    return y, shortcut


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x := x.contiguous(memory_format=torch.channels_last), weight)
        ctx.bias_dtype = bias.dtype
        ctx.set_materialize_grads(False)
        if x.dtype == weight.dtype == dtype == torch.float32:  # PyTorch's is a little faster here, and only here
            y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
        else:
            y = convolve(x, by_position(weight), bias, dtype)
        return y, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dshortcut: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:  # a convolution with the kernel rotated by 180 degrees
            dx = convolve(dy, by_position(weight).flip(0), dy.new_zeros(len(weight)), x.dtype, dshortcut)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            sums = _gradient(x, dy, weight.shape[-1])
            dweight = sums[:-1].t().reshape(weight.shape).to(weight.dtype)
            dbias = sums[-1].to(ctx.bias_dtype)
        return dx, dweight, dbias, None


def by_position(weight: Tensor) -> Tensor:
    """``(C, 1, K, K)`` to ``(K * K, C)``."""
    return weight.flatten(1).t()


def _padded(rows: Tensor) -> Tensor:
    """Float32, with zeros behind until the last dimension is one of whole vectors."""
    missing = -rows.shape[-1] % compiled().lanes
    return (F.pad(rows, (0, missing)) if missing else rows).float().contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, added: Tensor | None = None) -> Tensor:
    """``(N, C, H, W)`` in channels_last with weights ``(K * K, C)``, plus what is ``added``."""
    n, c, h, w = x.shape
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    if added is not None:
        added = added.to(dtype).contiguous(memory_format=torch.channels_last)
    size = round(len(weight) ** 0.5)
    weight, bias = _padded(weight), _padded(bias)
    compiled()("depthwise_forward", x, is_half(x), weight, bias, added, y, is_half(y), n, h, w, c, size)
    return y


def _gradient(x: Tensor, dy: Tensor, size: int) -> Tensor:
    """``(K * K + 1, C)``: of the weights at each position, and of the bias."""
    n, c, h, w = x.shape
    sections = min(n, _SECTIONS)
    sums = x.new_empty(sections, size * size + 1, c + -c % compiled().lanes, dtype=torch.float32)
    compiled()("depthwise_gradient", x, is_half(x), dy, is_half(dy), sums, sections, n, h, w, c, size)
    return sums.sum(0)[:, :c]
