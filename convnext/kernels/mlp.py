"""A block's linear layers and what is around them, a few rows at a time, so that what is between stays in the cache."""

from typing import Any

import torch
from torch import Tensor, nn

from convnext.kernels.build import compiled, is_half, refuse_second_derivative
from convnext.kernels.products import Product

_CHUNK = 1 << 15  # values of a row's input that a thread takes at a time, in rows of the least and most number below
_ROWS = 256, 512
_BLOCK = 1 << 16  # values of the hidden layer that a thread takes at a time: they and their gradients stay in its cache
_LEAST_ROWS = 256  # of a section: each has sums as large as the weights
_SAVED_FROM = (
    64  # channels, from which to keep the hidden layer for the gradient takes less time than to multiply again
)


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

    Where `kernels.usable` and `multiplies` say so. ``x``, ``shortcut`` and the result are ``(N, C, H, W)``, ``gamma``
    is ``(C,)`` or None for 1, and ``factor`` is ``(N,)``, without gradient, or None for 1. Under autocast the matrices
    are bfloat16; the result is as wide as the weights.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    n, channels, height, width = x.shape
    sizes = *norm.normalized_shape, linear1.in_features, linear2.out_features
    if x.shape != shortcut.shape or set(sizes) != {channels} or linear1.out_features != linear2.in_features:
        raise ValueError(f"layers of {', '.join(map(str, sizes))} channels for an input of {tuple(x.shape)}")
    dtype = computed_in(x)
    wide = torch.promote_types(shortcut.dtype, linear2.weight.dtype)
    factor = None if factor is None else factor.float().contiguous()
    rows = _rows(x).to(dtype), _rows(shortcut).to(wide)
    layers = norm.weight, norm.bias, linear1.weight, linear1.bias, linear2.weight, linear2.bias, gamma
    y: Tensor = _Mlp.apply(*rows, *layers, factor, height * width, float(norm.eps))
    return y.view(n, height, width, channels).permute(0, 3, 1, 2)


def multiplies(x: Tensor, width: int) -> bool:
    """Whether there is a product for what `mlp` would multiply of ``x``, with a hidden layer of that width."""
    dtype = computed_in(x)
    even = x.shape[1] % 2 == width % 2 == 0  # as pairs of bfloat16 have to be
    return dtype in compiled().products and (even or dtype == torch.float32)


def computed_in(x: Tensor) -> torch.dtype:
    """The type of what is multiplied of ``x``: autocast's, where that is on."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _rows(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(N * H * W, C)``: a view where ``x`` is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shortcut: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        gamma: Tensor | None,
        factor: Tensor | None,
        positions: int,
        eps: float,
    ) -> Tensor:
        y = torch.empty_like(shortcut)
        product = compiled().products[x.dtype]
        layers = scale, shift, weight1, bias1, weight2, bias2
        ctx.dtypes = [None if t is None else t.dtype for t in (*layers, gamma)]
        scale, shift, weight1, bias1, weight2, bias2 = (t.float().contiguous() for t in layers)
        gamma = None if gamma is None else gamma.float().contiguous()
        gradient, (width, dim) = any(ctx.needs_input_grad), weight1.shape
        # The factors of the norm and of the layer scale go into the matrices beside them.
        linear1, dlinear1, total1 = ordered(product, weight1, None, scale, shift, bias1, gradient)
        linear2, dlinear2, _ = ordered(product, weight2, gamma, None, None, None, gradient)
        total2 = bias2 if gamma is None else gamma * bias2
        saved = x.new_empty(len(x), width) if gradient and dim >= _SAVED_FROM else None
        sizes = *kernel_sizes(product, x, shortcut, width), positions, eps
        compiled()("mlp_forward", *sizes, x, shortcut, linear1, total1, linear2, total2, factor, saved, y)
        ctx.save_for_backward(
            x, saved, linear1, total1, dlinear1, dlinear2, factor, scale, shift, weight1, weight2, bias2, gamma
        )
        ctx.positions, ctx.eps = positions, eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, saved, linear1, total1, dlinear1, dlinear2, factor, *layers = ctx.saved_tensors
        scale, shift, weight1, weight2, bias2, gamma = layers
        dy, dx, product = dy.contiguous(), torch.empty_like(x), compiled().products[x.dtype]
        sections, (width, dim) = min(torch.get_num_threads(), -(-len(x) // _LEAST_ROWS)), weight1.shape
        sums1, sums2 = (scale.new_empty(sections, dim, width) for _ in range(2))
        dbias1, dbias2 = scale.new_zeros(sections, width), scale.new_zeros(sections, dim)
        sizes = *kernel_sizes(product, x, dy, width), ctx.positions, ctx.eps
        weights = linear1, total1, dlinear1, dlinear2, factor, saved
        compiled()("mlp_backward", *sizes, x, dy, *weights, dx, sections, sums1, dbias1, sums2, dbias2)
        dbias1, dbias2 = dbias1.sum(0), dbias2.sum(0)
        dweight1, dscale, dshift = torch.empty_like(weight1), torch.empty_like(scale), torch.empty_like(shift)
        column = weight1, scale, shift, dbias1, dweight1, dscale, dshift
        compiled()("column_gradients", sections, dim, width, sums1, *column)
        dweight2, dgamma = torch.empty_like(weight2), None if gamma is None else torch.empty_like(gamma)
        compiled()("row_gradients", sections, dim, width, sums2, weight2, gamma, dweight2, dgamma)
        if dgamma is not None:
            dgamma, dbias2 = dgamma.addcmul_(dbias2, bias2), dbias2 * gamma
        gradients = dscale, dshift, dweight1, dbias1, dweight2, dbias2, dgamma
        typed = (None if t is None else t.to(dtype) for t, dtype in zip(gradients, ctx.dtypes, strict=True))
        return dx, dy, *typed, None, None, None


def ordered(
    product: Product,
    weight: Tensor,
    row_factor: Tensor | None,
    column_factor: Tensor | None,
    shift: Tensor | None,
    bias: Tensor | None,
    both: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A weight ``(rows, columns)`` times its factors as the product takes it: transposed, and where ``both``, as it is;
    and where there is a shift ``(columns,)``, ``bias + weight @ shift``."""
    transposed = weight.new_empty(weight.numel(), dtype=product.dtype)
    same = torch.empty_like(transposed) if both else None
    total = None if bias is None else torch.empty_like(bias)
    sizes = is_half(transposed), product.paired, *weight.shape
    compiled()("weights_order", *sizes, weight, row_factor, column_factor, shift, bias, total, same, transposed)
    return transposed, same, total


def kernel_sizes(product: Product, x: Tensor, residual: Tensor, width: int) -> tuple[int, ...]:
    """What both kernels take first: the matrix product, types, and sizes, of which the last are the rows of a chunk and
    the columns of a block of the hidden layer."""
    rows, dim = x.shape
    chunk = min(max(_CHUNK // dim, _ROWS[0]), _ROWS[1])
    block = min(max(_BLOCK // chunk // 64 * 64, 64), width)  # the gradient has it again, whatever the threads then
    chunk = min(chunk, -(-rows // torch.get_num_threads()))
    return product.address, product.number, is_half(x), is_half(residual), rows, dim, width, chunk, block
