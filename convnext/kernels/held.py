"""A block whose weights are put in order for the kernels once, for as long as they stay as they are."""

from typing import Any

import torch
from torch import Tensor

from convnext.kernels.build import compiled
from convnext.kernels.depthwise import by_position, convolve
from convnext.kernels.mlp import kernel_sizes, ordered


class HeldBlock:
    """What a block of float32 weights computes without gradient, in float32 or under autocast to bfloat16.

    Args:
        block: one that the kernels would compute with gradients; the values of its weights are copied.
        dtype: of what is multiplied.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        def value(x: Tensor) -> Tensor:
            return x.detach().contiguous()

        conv, norm, linear1, linear2 = block.dwconv, block.norm, block.pwconv1, block.pwconv2
        gamma = None if block.gamma is None else value(block.gamma)
        self._dtype, self._product = dtype, compiled().products[dtype]
        self._kernel = by_position(value(conv.weight)).contiguous()
        self._bias = torch.zeros(len(conv.weight)) if conv.bias is None else value(conv.bias)
        first = value(linear1.weight), None, value(norm.weight), value(norm.bias), value(linear1.bias)
        linear1_t, _, bias1 = ordered(self._product, *first, both=False)
        linear2_t, *_ = ordered(self._product, value(linear2.weight), gamma, None, None, None, both=False)
        bias2 = value(linear2.bias) if gamma is None else gamma * value(linear2.bias)
        self._weights = linear1_t, bias1, linear2_t, bias2
        self._width, self._eps = linear1.out_features, float(norm.eps)
        self._versions = versions(block)

    def is_current(self, block: Any) -> bool:
        """Whether the block's weights are those that were copied."""
        return self._versions == versions(block)

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape in float32, channels_last."""
        x = x.contiguous(memory_format=torch.channels_last)
        y, shortcut = convolve(x, self._kernel, self._bias, self._dtype), x.float()
        out = torch.empty_like(shortcut)
        rows, residual = (t.permute(0, 2, 3, 1).view(-1, x.shape[1]) for t in (y, shortcut))
        sizes = *kernel_sizes(self._product, rows, residual, self._width), x.shape[2] * x.shape[3], self._eps
        compiled()("mlp_forward", *sizes, y, shortcut, *self._weights, None, None, out)
        return out


def versions(block: Any) -> list[tuple[int, int]]:
    """What changes whenever a parameter does: where it lies, and how often it was written."""
    return [(parameter.data_ptr(), parameter._version) for parameter in block.parameters()]
