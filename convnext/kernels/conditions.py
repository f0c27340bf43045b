"""Where the kernels can compute what PyTorch would, and where nobody would see the difference."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from convnext.kernels.mlp import computed_in

DTYPES = {torch.float32, torch.bfloat16}
# What our modules compute in the place of, by name: this room may not import models.
_MODELS = "convnext.models.convnext"
BLOCK_FORWARD = (_MODELS, "Block.forward")
LAYER_NORM_FORWARD = (_MODELS, "LayerNorm2d.forward")
POOLED_FORWARD = (_MODELS, "PooledConv2d.forward")
STOCHASTIC_DEPTH = (_MODELS, "StochasticDepth")


def forward_of(module: nn.Module) -> tuple[str, str]:
    """What the module's class computes: the names of its forward's module and of itself."""
    forward = type(module).forward
    return forward.__module__, forward.__qualname__


def is_recorded(x: Tensor) -> bool:
    """Whether PyTorch records operations or transforms them, in place of computing."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or type(x) is not Tensor
    )


def has_dtypes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels compute with these types, as they are or under autocast."""
    if torch.is_autocast_enabled("cpu"):
        return {x.dtype, weight.dtype} <= DTYPES and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == weight.dtype and x.dtype in DTYPES


def is_half_with_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient will be asked of what is multiplied in bfloat16 on the CPU."""
    if is_recorded(x) or not (x.is_cpu and weight.is_cpu and torch.is_grad_enabled() and weight.requires_grad):
        return False
    return computed_in(x) == torch.bfloat16 and has_dtypes(x, weight)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether it is of the kind that the kernel computes: an odd size, stride 1, zeros around."""
    size = conv.weight.shape[-1]
    return (
        len(conv.weight) == conv.groups
        and conv.weight.shape[1:] == (1, size, size)
        and size % 2 == 1
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (size // 2, size // 2)
        and conv.padding_mode == "zeros"
    )


def is_of_patches(conv: nn.Conv2d) -> bool:
    """Whether it is of squares that lie side by side."""
    patch = conv.stride[0]
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding == (0, 0)
    return plain and patch > 1 and conv.kernel_size == conv.stride == (patch, patch)


def is_listened_to(modules: Iterable[nn.Module]) -> bool:
    """Whether anybody listens to one of the modules or has put in a forward of his own."""
    return _has_any_global_hook() or any(map(is_changed, modules))  # type: ignore[no-untyped-call]


def is_changed(module: nn.Module) -> bool:
    """The same of one module, but for hooks of all modules."""
    return "forward" in vars(module) or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_plain(module: nn.Module, kind: type[nn.Module] | tuple[str, str]) -> bool:
    """Whether it is of that type, or of that name in that module, with a bias, and computes as its type does."""
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return False
    own = type(module)
    return kind in (own, (own.__module__, own.__qualname__)) and getattr(module, "bias", True) is not None
