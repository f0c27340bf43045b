"""A ConvNeXt block for CUDA, where moving its activations takes longer than multiplying them.

Under bfloat16 autocast PyTorch casts what a layer norm takes to float32, and back for the layer after it; and the layer
scale makes float32 of a block's output, for whose gradient all activations are read once more. In its place

- the norm gives bfloat16, with statistics that are summed in float32 all the same;
- the layer scale is multiplied into the weights of the linear layer before it, of which there are few;
- what comes out is added to the block's input in one pass, with the factor of stochastic depth. That sum stays in
  float32: bfloat16 would round away what a block adds at first, by a layer scale of 1e-6.

In float16, which has no number for a weight times 1e-6, and under ``torch.compile``, which fuses all this by itself,
the block computes as it is written in `convnext.models.convnext`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.kernels.conditions import BLOCK_FORWARD, STOCHASTIC_DEPTH, forward_of, is_changed, is_plain
from convnext.kernels.faster import class_of, empty


def install(model: nn.Module, device: str = "cuda") -> None:
    """Let the blocks of `convnext.models.convnext` that are on CUDA compute faster, and the same but for rounding.

    Args:
        model: on the device where it will compute; it is changed in place, and its parameters and their names stay.
        device: another one than CUDA, to compare the arithmetic there.
    """
    for module in model.modules():
        if forward_of(module) == BLOCK_FORWARD and all(p.device.type == device for p in module.parameters()):
            module.__class__ = class_of(_Block, type(module))


class _Block(nn.Module):
    """Comes before the block's own class in the order of inheritance, so that ``super()`` is that."""

    dwconv: nn.Module
    norm: nn.LayerNorm
    pwconv1: nn.Module
    act: nn.Module
    grn: nn.Module
    pwconv2: nn.Linear
    drop_path: nn.Module
    gamma: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        half = torch.get_autocast_dtype(kind) if autocast else x.dtype
        if half == torch.float16 or torch.compiler.is_compiling() or not self._is_as_built():
            out: Tensor = super().forward(x)
            return out
        y = self.dwconv(x).permute(0, 2, 3, 1)
        with torch.autocast(kind, enabled=False):
            weight, bias = (parameter.to(y.dtype) for parameter in (self.norm.weight, self.norm.bias))
            y = F.layer_norm(y, self.norm.normalized_shape, weight, bias, self.norm.eps)
        y = self.grn(self.act(self.pwconv1(y)))
        weight, bias = self.pwconv2.weight, self.pwconv2.bias
        if self.gamma is not None:
            weight, bias = self.gamma[:, None] * weight, self.gamma * bias
        y = F.linear(y, weight, bias).permute(0, 3, 1, 2)
        wide = torch.float32 if autocast else x.dtype
        with torch.autocast(kind, enabled=False):
            if not self.training or self.drop_path.p == 0:
                return x.to(wide) + y
            return torch.addcmul(x, y, self.drop_path(x.new_ones(len(x), 1, 1, 1, dtype=wide)))

    def _is_as_built(self) -> bool:
        """Whether nobody has changed the modules in whose place `forward` computes, or listens to them."""
        return (
            is_plain(self.norm, nn.LayerNorm)
            and is_plain(self.pwconv2, nn.Linear)
            and is_plain(self.drop_path, STOCHASTIC_DEPTH)
            and not any(map(is_changed, (self.norm, self.pwconv2, self.drop_path)))
        )

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        # The class is made at run time, and cannot be imported by name.
        return empty, type(self).__bases__, vars(self)
