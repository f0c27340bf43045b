"""Modules whose weights are put in order for the kernels once, for as long as they stay as they are."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.kernels.build import compiled
from convnext.kernels.depthwise import by_position, convolve
from convnext.kernels.layer_norm import normalized
from convnext.kernels.mlp import kernel_sizes, ordered


class Held:
    """Knows a module whose weights were copied by the modules and parameters in it."""

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        owned = [each for owner in modules for each in (owner._modules, owner._parameters)]
        self._sizes = [(each, len(each)) for each in owned]
        self._modules = [(owner._modules, name, each) for owner in modules for name, each in owner._modules.items()]
        self._parameters = [
            (owner._parameters, name, parameter, _version(parameter))
            for owner in modules
            for name, parameter in owner._parameters.items()
        ]

    def is_current(self) -> bool:
        """Whether they are those that were there. It is asked at each call, and so in few steps."""
        for owned, size in self._sizes:
            if len(owned) != size:
                return False
        for owner, name, module in self._modules:
            if owner.get(name) is not module:
                return False
        for parameters, name, parameter, version in self._parameters:
            if parameters.get(name) is not parameter or version != _version(parameter):
                return False
        return True


class HeldBlock(Held):
    """What a block of float32 weights computes without gradient, in float32 or under autocast to bfloat16.

    Args:
        block: one that the kernels would compute with gradients; the values of its weights are copied.
        dtype: of what is multiplied.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__(block)
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

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape in float32, channels_last."""
        x = x.contiguous(memory_format=torch.channels_last)
        y, shortcut = convolve(x, self._kernel, self._bias, self._dtype), x.float()
        out = torch.empty_like(shortcut)
        rows, residual = (t.permute(0, 2, 3, 1).view(-1, x.shape[1]) for t in (y, shortcut))
        sizes = *kernel_sizes(self._product, rows, residual, self._width), x.shape[2] * x.shape[3], self._eps
        compiled()("mlp_forward", *sizes, y, shortcut, *self._weights, None, None, out)
        return out


class HeldDownsampling(Held):
    """What a norm and a convolution of patches, of float32 weights, compute without gradient in bfloat16.

    Args:
        layers: the two; the values of their weights are copied.
    """

    def __init__(self, layers: Any) -> None:
        super().__init__(layers)
        norm, conv = layers
        self._norm = value(norm.weight), value(norm.bias), float(norm.eps), torch.bfloat16
        self._weight = value(conv.weight.permute(0, 2, 3, 1)).flatten(1).bfloat16()
        self._bias = None if conv.bias is None else value(conv.bias).bfloat16()
        self._patch = conv.stride[0]

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, D, H / P, W / P)`` in bfloat16, channels_last."""
        n, _, height, width = x.shape
        rows = normalized(x, *self._norm, self._patch).view(-1, self._weight.shape[1])
        y = F.linear(rows, self._weight, self._bias)
        return y.view(n, height // self._patch, width // self._patch, -1).permute(0, 3, 1, 2)


def value(x: Tensor) -> Tensor:
    """Without gradient, and row by row."""
    return x.detach().contiguous()


def _version(parameter: Tensor | None) -> tuple[int, int]:
    """What changes whenever a parameter does: where it lies, and how often it was written."""
    return (0, 0) if parameter is None else (parameter.data_ptr(), parameter._version)
