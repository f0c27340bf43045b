"""Faster arithmetic for training on CPU, in C.

Two things are slow there with PyTorch's own operations, and are replaced:

- The weight gradient of a depthwise convolution takes 10 to 15 times as long as the convolution, and longer in
  bfloat16: `depthwise_conv2d`.
- A block's hidden layer, four times as wide as its input, leaves the processor's cache between one operation and the
  next, so that each waits for memory, and after each all threads wait for the slowest. In `mlp` each thread computes
  all of it for some rows, then for the next. The matrix products are those of MKL, which PyTorch has on x86. For the
  gradient it keeps the branch's input and, where that is faster than to compute it again, the first product.

The C (no header but the C library's, vectors by the compiler's extension) is compiled when it is first needed, by
``$CC`` or ``cc``, and kept in the cache folder. It runs in PyTorch's own threads. Wherever it does not apply, the model
computes with PyTorch's operations alone: on other devices, without gradient, under ``torch.compile``, export and
tracing, for other types than float32 and bfloat16, without a compiler, and with ``CONVNEXT_KERNELS=0``. `describe`
says which it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

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


def usable(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `depthwise_conv2d` computes here and now what the convolution does; compiles it when it first does."""
    return (
        not _followed(x)
        and x.device.type == conv.weight.device.type == "cpu"
        and torch.is_grad_enabled()
        and (x.requires_grad or conv.weight.requires_grad)
        and _has_types(x, conv.weight)
        and _is_depthwise(x, conv)
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


def _is_depthwise(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether it is of the kind that the kernel computes: an odd side, stride 1, zeros around."""
    side = conv.weight.shape[-1]
    return (
        x.ndim == 4
        and x.shape[1] == conv.groups == len(conv.weight)
        and conv.weight.shape[1:] == (1, side, side)
        and side % 2 == 1
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (side // 2, side // 2)
        and conv.padding_mode == "zeros"
    )


def replaceable(modules: Sequence[nn.Module], types: Sequence[type[nn.Module]]) -> bool:
    """Whether `block` applies where `usable` says so, and computes what a block's modules would: they are of these
    types, with parameters of one type on one device, and nobody listens to them or has put in a forward of his own."""
    return (
        compiled().multiplies
        and all(map(_is_plain, modules, types))
        and not any(map(_is_changed, modules))
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and len({(p.dtype, p.device) for module in modules for p in module.parameters()}) == 1
    )


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return False
    return type(module) is kind and getattr(module, "bias", True) is not None


def _is_changed(module: nn.Module) -> bool:
    return "forward" in vars(module) or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
