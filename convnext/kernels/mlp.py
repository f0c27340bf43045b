"""A block's linear layers and what is around them, a few rows at a time, so that what is between stays in the cache."""

from typing import Any

import torch
from torch import Tensor, nn

from convnext.kernels.build import compiled, refuse_second_derivative

_HIDDEN = 1 << 19  # values of the hidden layer that a thread takes at a time: 1 or 2 MB
_LEAST_ROWS = 512  # for a thread; matrix products of fewer are slow
# From so many channels on, the hidden layer is kept for the gradient: to multiply again would take longer than to read.
_KEPT = {torch.float32: 128, torch.bfloat16: 256}


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

    Where `kernels.usable` says so. Under autocast the matrices are bfloat16; the result is as wide as the weights.

    Args:
        x: ``(N, C, H, W)``.
        shortcut: ``(N, C, H, W)``, as the result.
        norm: over ``C`` channels.
        linear1: from ``C`` to a hidden layer.
        linear2: back to ``C``.
        gamma: ``(C,)``; None for 1.
        factor: ``(N,)``; None for 1.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    # The norm's and gamma's factors go into the matrices beside them, and autograd finds their gradients from there.
    with torch.autocast("cpu", enabled=False):
        weight1 = linear1.weight * norm.weight
        bias1 = torch.addmv(linear1.bias, linear1.weight, norm.bias)
        weight2 = linear2.weight if gamma is None else gamma[:, None] * linear2.weight
        bias2 = linear2.bias if gamma is None else gamma * linear2.bias
    wide = torch.promote_types(shortcut.dtype, linear2.weight.dtype)
    weights = weight1.to(dtype), bias1.float(), weight2.to(dtype), bias2.float()
    n, channels, height, width = x.shape
    y: Tensor = _Mlp.apply(_rows(x).to(dtype), _rows(shortcut).to(wide), *weights, factor, height * width, norm.eps)
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
        call, half, wide = compiled(), _half(x), _half(shortcut)
        (width, dim), chunk = weight1.shape, _chunk(x, weight1)
        y, scale = torch.empty_like(shortcut), bias1.new_empty(chunk)
        kept = x.new_empty(len(x), width) if dim >= _KEPT[x.dtype] else None
        buffers = _buffers(x, chunk, dim, width, dim)
        for rows in _slices(len(x), chunk):
            n = rows.stop - rows.start
            normal, act, branch = (buffer[:n] for buffer in buffers)
            hidden = act if kept is None else kept[rows]
            call("mlp_normalize", n, dim, half, x[rows], normal, scale, eps)
            torch.mm(normal, weight1.t(), out=hidden)
            call("mlp_gelu", n, width, half, hidden, bias1, act)
            torch.mm(act, weight2.t(), out=branch)
            call("mlp_add", n, dim, half, wide, branch, bias2, shortcut[rows], y[rows], factor, rows.start, positions)
        ctx.save_for_backward(x, kept, weight1, bias1, weight2, factor)
        ctx.positions, ctx.eps, ctx.chunk = positions, eps, chunk
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, kept, weight1, bias1, weight2, factor = ctx.saved_tensors
        dy = dy.contiguous()
        call, half, wide = compiled(), _half(x), _half(dy)
        (width, dim), chunk = weight1.shape, ctx.chunk
        dx, scale, slices = torch.empty_like(x), bias1.new_empty(chunk), _slices(len(x), chunk)
        dweight1, dweight2 = bias1.new_zeros(width, dim), bias1.new_zeros(dim, width)
        dbias1, dbias2 = (bias1.new_zeros(len(slices), torch.get_num_threads(), size) for size in (width, dim))
        buffers = _buffers(x, chunk, dim, dim, width, width)
        for number, rows in enumerate(slices):
            n = rows.stop - rows.start
            normal, dbranch, act, dhidden = (buffer[:n] for buffer in buffers)
            call("mlp_normalize", n, dim, half, x[rows], normal, scale, ctx.eps)
            hidden = torch.mm(normal, weight1.t(), out=act) if kept is None else kept[rows]
            call("mlp_scale", n, dim, half, wide, dy[rows], dbranch, dbias2[number], factor, rows.start, ctx.positions)
            torch.mm(dbranch, weight2, out=dhidden)
            call("mlp_gelu_gradient", n, width, half, hidden, bias1, act, dhidden, dbias1[number])
            _add_product(dweight2, dbranch.t(), act)
            _add_product(dweight1, dhidden.t(), normal)
            dnormal = torch.mm(dhidden, weight1, out=dbranch)
            call("mlp_normalize_gradient", n, dim, half, dnormal, normal, scale, dx[rows])
        dweights = dweight1.to(weight1.dtype), dbias1.sum((0, 1)), dweight2.to(weight2.dtype), dbias2.sum((0, 1))
        return dx, dy, *dweights, None, None, None


def _chunk(x: Tensor, weight1: Tensor) -> int:
    """Rows to take at a time."""
    return min(torch.get_num_threads() * max(_HIDDEN // len(weight1), _LEAST_ROWS), len(x))


def _slices(rows: int, chunk: int) -> list[slice]:
    return [slice(first, min(first + chunk, rows)) for first in range(0, rows, chunk)]


def _buffers(like: Tensor, rows: int, *columns: int) -> list[Tensor]:
    return [like.new_empty(rows, size) for size in columns]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, where the total is float32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)
