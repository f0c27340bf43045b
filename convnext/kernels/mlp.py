"""A block's linear layers and what is around them, a few rows at a time, so that what is between stays in the cache."""

from typing import Any

import torch
from torch import Tensor, nn

from convnext.kernels.build import compiled, is_half, refuse_second_derivative

_HIDDEN = 1 << 17  # values of the hidden layer that a thread takes at a time: 512 KB, of which gradients need two
_LEAST_ROWS = 256  # matrix products of fewer are slow
# From so many channels on, the hidden layer is kept for the gradient: to multiply again would take longer than to read.
_SAVED_FROM = {torch.float32: 128, torch.bfloat16: 64}


def mlp(
    x: Tensor,
    shortcut: Tensor,
    norm: nn.LayerNorm,
    linear1: nn.Linear,
    linear2: nn.Linear,
    gamma: Tensor | None,
    factor: Tensor | None,
) -> Tensor:
    """``shortcut + factor * gamma * linear2(gelu(linear1(norm(x))))``.

    Where `kernels.usable` says so and MKL is there. ``x``, ``shortcut`` and the result are ``(N, C, H, W)``, ``gamma``
    is ``(C,)`` or None for 1, and ``factor`` is ``(N,)``, without gradient, or None for 1. Under autocast the matrices
    are bfloat16; the result is as wide as the weights.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    n, channels, height, width = x.shape
    sizes = *norm.normalized_shape, linear1.in_features, linear2.out_features
    if x.shape != shortcut.shape or set(sizes) != {channels} or linear1.out_features != linear2.in_features:
        raise ValueError(f"layers of {', '.join(map(str, sizes))} channels for an input of {tuple(x.shape)}")
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    # The norm's and gamma's factors go into the matrices beside them, and autograd finds their gradients from there.
    with torch.autocast("cpu", enabled=False):
        weight1 = linear1.weight * norm.weight
        bias1 = torch.addmv(linear1.bias, linear1.weight, norm.bias)
        weight2 = linear2.weight if gamma is None else gamma[:, None] * linear2.weight
        bias2 = linear2.bias if gamma is None else gamma * linear2.bias
    wide = torch.promote_types(shortcut.dtype, linear2.weight.dtype)
    weights = [t.contiguous() for t in (weight1.to(dtype), bias1.float(), weight2.to(dtype), bias2.float())]
    factor = None if factor is None else factor.float().contiguous()
    rows = _rows(x).to(dtype), _rows(shortcut).to(wide)
    y: Tensor = _Mlp.apply(*rows, *weights, factor, height * width, float(norm.eps))
    return y.view(n, height, width, channels).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(N * H * W, C)``: a view where ``x`` is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shortcut: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        factor: Tensor | None,
        positions: int,
        eps: float,
    ) -> Tensor:
        y = torch.empty_like(shortcut)
        width, dim = weight1.shape
        saved = x.new_empty(len(x), width) if dim >= _SAVED_FROM[x.dtype] else None
        sizes = *_sizes(x, shortcut, weight1), positions, eps
        compiled()("mlp_forward", *sizes, x, shortcut, weight1, bias1, weight2, bias2, factor, saved, y)
        ctx.save_for_backward(x, saved, weight1, bias1, weight2, factor)
        ctx.positions, ctx.eps = positions, eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, saved, weight1, bias1, weight2, factor = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        sections = min(torch.get_num_threads(), -(-len(x) // _LEAST_ROWS))  # each has sums as large as the weights
        width, dim = weight1.shape
        shapes = (width, dim), (width,), (dim, width), (dim,)
        dweight1, dbias1, dweight2, dbias2 = sums = [bias1.new_zeros(sections, *shape) for shape in shapes]
        sizes = *_sizes(x, dy, weight1), ctx.positions, ctx.eps
        compiled()("mlp_backward", *sizes, x, dy, weight1, bias1, weight2, factor, saved, dx, sections, *sums)
        dweights = dweight1.sum(0).to(weight1.dtype), dbias1.sum(0), dweight2.sum(0).to(weight2.dtype), dbias2.sum(0)
        return dx, dy, *dweights, None, None, None


def _sizes(x: Tensor, residual: Tensor, weight1: Tensor) -> tuple[int, ...]:
    """What both kernels take first: the matrix product, types, and sizes, of which the last is the rows of a chunk."""
    (width, dim), threads = weight1.shape, torch.get_num_threads()
    chunk = min(max(_HIDDEN // width, _LEAST_ROWS), -(-len(x) // threads))
    return compiled().product(x.dtype), is_half(x), is_half(residual), len(x), dim, width, chunk
