"""Stem and downsampling in bfloat16: convolutions of patches as products of matrices, and the norms beside them."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.kernels.build import library
from convnext.kernels.conditions import has_dtypes, is_half_with_gradient, is_listened_to, is_recorded
from convnext.kernels.faster import Faster
from convnext.kernels.held import HeldDownsampling
from convnext.kernels.layer_norm import layer_norm_2d, layer_norm_patches
from convnext.kernels.mlp import computed_in


class PatchConv2d(nn.Conv2d):
    """A convolution of patches that lie side by side, as in a stem and in downsampling: see `install`.

    In bfloat16 PyTorch's gradient of the weights takes twice as long as that of the same product of matrices.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, D, H / P, W / P)``."""
        if not (is_half_with_gradient(input, self.weight) and _is_of_whole_patches(input, self)):
            return super().forward(input)
        (n, channels, height, width), patch = input.shape, self.stride[0]
        rows, columns = height // patch, width // patch
        # Put in order as what is multiplied, which is half as wide.
        half = input.to(computed_in(input)).permute(0, 2, 3, 1)
        positions = half.view(n, rows, patch, columns, patch, channels)
        return _multiply(positions.transpose(2, 3).reshape(n, rows, columns, -1), self)


class HalfLayerNorm2d(Faster, nn.LayerNorm):
    """The norm of a feature map, which PyTorch takes two and three times as long for in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape, as wide as the weights."""
        if not _is_computed(x, self):
            return super().forward(x)
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        return layer_norm_2d(x, self.weight, self.bias, self.eps, dtype)


class HalfDownsampling(Faster, nn.Sequential):
    """A norm and a convolution: the norm gives what the convolution multiplies, in the order that it takes."""

    _held: dict[torch.dtype, HeldDownsampling] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, D, H / stride, W / stride)``."""
        if self._held is not None and not (torch.is_grad_enabled() or self.training or is_recorded(x)):
            held = self._held_for(x)
            if held is not None:
                return held(x)
        if not self._is_as_built() or not _is_computed(x, norm := cast(nn.LayerNorm, self[0])):
            return cast(Tensor, nn.Sequential.forward(self, x))  # type: ignore[no-untyped-call]
        conv, layer = cast(nn.Conv2d, self[1]), (norm.weight, norm.bias, norm.eps, computed_in(x))
        if type(conv) is PatchConv2d and conv.weight.requires_grad and _is_of_whole_patches(x, conv):
            return _multiply(layer_norm_patches(x, *layer, conv.stride[0]), conv)
        return cast(Tensor, conv(layer_norm_2d(x, *layer)))

    def _held_for(self, x: Tensor) -> HeldDownsampling | None:
        """What computes with weights in order; None where the kernels do not compute that."""
        assert self._held is not None
        if not self._is_as_built():
            return None
        norm, conv = cast(nn.LayerNorm, self[0]), cast(nn.Conv2d, self[1])
        one_type = {p.dtype for p in self.parameters()} == {torch.float32}
        patches = type(conv) is PatchConv2d and conv.in_channels == x.shape[1] and _is_of_whole_patches(x, conv)
        if not (one_type and patches and _is_normalized(x, norm)):
            return None
        held = self._held.get(torch.bfloat16)
        if held is None or not held.is_current():
            held = self._held[torch.bfloat16] = HeldDownsampling(self)
        return held

    def _is_as_built(self) -> bool:
        """Whether it is a norm and a convolution still, to which nobody listens."""
        norm, conv = self if len(self) == 2 else (None, None)
        plain = isinstance(norm, HalfLayerNorm2d) and type(conv) in (nn.Conv2d, PatchConv2d)
        return plain and not is_listened_to(self)


def _multiply(patches: Tensor, conv: nn.Conv2d) -> Tensor:
    """``(N, H / P, W / P, P * P * C)`` to ``(N, D, H / P, W / P)``."""
    y = F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    return y.permute(0, 3, 1, 2)


def _is_of_whole_patches(x: Tensor, conv: nn.Conv2d) -> bool:
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return channels_last and all(length % conv.stride[0] == 0 for length in x.shape[2:]) and x.numel() > 0


def _is_computed(x: Tensor, norm: nn.LayerNorm) -> bool:
    """Whether the kernel computes the norm and its gradient here and now; compiles it when it first does."""
    wanted = torch.is_grad_enabled() and norm.weight is not None and (x.requires_grad or norm.weight.requires_grad)
    return wanted and _is_normalized(x, norm)


def _is_normalized(x: Tensor, norm: nn.LayerNorm) -> bool:
    """Whether the kernel can compute the norm of what is multiplied in bfloat16."""
    weight = norm.weight
    return (
        not is_recorded(x)
        and x.is_cpu
        and weight is not None
        and norm.bias is not None
        and weight.is_cpu
        and computed_in(x) == torch.bfloat16
        and has_dtypes(x, weight)
        and x.ndim == 4
        and norm.normalized_shape == (x.shape[1],)
        and x.numel() > 0
        and library() is not None
    )
