"""Faster arithmetic for training on CPU, in C.

Two things are slow there with PyTorch's own operations, and are replaced:

- The weight gradient of a depthwise convolution takes 10 to 15 times as long as the convolution, and longer in
  bfloat16: `depthwise_conv2d`.
- A block's hidden layer, four times as wide as its input, leaves the processor's cache between one operation and the
  next, so that each waits for memory, and after each all threads wait for the slowest. In `mlp` each thread computes
  all of it for some rows, then for the next. The matrix products are those of MKL, which PyTorch has on x86. For the
  gradient it keeps the branch's input and, where that is faster than to compute it again, the first product: half of
  what PyTorch keeps, or an eighth.

The C (no header but the C library's, vectors by the compiler's extension) is compiled when it is first needed, by
``$CC`` or ``cc``, and kept in the cache folder. It runs in PyTorch's own threads. Wherever it does not apply, the model
computes with PyTorch's operations alone: on other devices, without gradient, under ``torch.compile``, export and
tracing, for other types than float32 and bfloat16, without a compiler, and with ``CONVNEXT_KERNELS=0``. `describe`
says which it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convnext.kernels.build import compiled, describe, library
from convnext.kernels.depthwise import convolve_and_keep, depthwise_conv2d
from convnext.kernels.mlp import mlp

__all__ = ["block", "depthwise_conv2d", "describe", "mlp", "replaceable", "usable"]

_TYPES = {torch.float32, torch.bfloat16}


def block(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.LayerNorm,
    linear1: nn.Linear,
    linear2: nn.Linear,
    gamma: Tensor | None,
    factor: Tensor | None,
) -> Tensor:
    """A whole block: `mlp` of `depthwise_conv2d`, around which ``x`` is the shortcut.

    Args:
        x: ``(N, C, H, W)``.
        conv: depthwise, of an odd kernel with half of it as padding.
        norm: as of `mlp`, with the rest.
        linear1: the first linear layer.
        linear2: the second.
        gamma: ``(C,)``; None for 1.
        factor: ``(N,)``; None for 1.
    """
    y, shortcut = convolve_and_keep(x, conv.weight, conv.bias)
    return mlp(y, shortcut, norm, linear1, linear2, gamma, factor)


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels apply to a layer's input and weight here and now; compiles them when they first do."""
    return (
        not _followed(x)
        and x.device.type == weight.device.type == "cpu"
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and _has_types(x, weight)
        and x.numel() > 0
        and library() is not None
    )


def _followed(x: Tensor) -> bool:
    """Whether PyTorch records operations or transforms them, in place of computing."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or type(x) is not Tensor
    )


def _has_types(x: Tensor, weight: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return {x.dtype, weight.dtype} <= _TYPES and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == weight.dtype and x.dtype in _TYPES


def replaceable(modules: Sequence[nn.Module], types: Sequence[type[nn.Module]]) -> bool:
    """Whether `block` applies where `usable` says so, and computes what a block's modules would: they are of these
    types, and have no hooks."""
    return compiled().multiplies and all(map(_is_plain, modules, types)) and not any(map(_has_hooks, modules))


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return False
    return type(module) is kind and getattr(module, "bias", True) is not None


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
