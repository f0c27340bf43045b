"""A model's modules with our kernels in them: `install`, `remove`, and the conditions under which they compute.

Parameters, state dict and class names stay. Pickling and copying work, and what is copied has the kernels too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from convnext.kernels.build import library
from convnext.kernels.depthwise import convolve_with_shortcut, depthwise_conv2d
from convnext.kernels.held import HeldBlock
from convnext.kernels.mlp import computed_in, mlp, multiplies
from convnext.kernels.pooling import MOST_KERNEL_SIZE, max_pool2d

_DTYPES = {torch.float32, torch.bfloat16}
# What `_Block` and `_PooledConv2d` compute, by name: this room may not import models. A class that overrides it is left
# alone.
_BLOCK_FORWARD = ("convnext.models.convnext", "Block.forward")
_POOLED_FORWARD = ("convnext.models.convnext", "PooledConv2d.forward")
_STOCHASTIC_DEPTH = ("convnext.models.convnext", "StochasticDepth")


def install(model: nn.Module) -> None:
    """Let the model train faster on CPU, by our kernels where they apply and by PyTorch's operations elsewhere.

    Convolutions of any model that are depthwise or of patches, and the blocks and pooled convolutions of
    `convnext.models.convnext`, get other classes, which compute the same. Under autocast on CPU depthwise ones stay in
    float32 where no kernel applies: PyTorch's gradient of their weights takes three times as long in bfloat16. Modules
    on other devices, subclasses with a forward of their own, and what is already installed are left as they are.

    Args:
        model: on the device where it will train; it is changed in place.
    """
    for module in model.modules():
        if not all(p.is_cpu for p in module.parameters()):
            continue
        forward = type(module).forward
        computed = forward.__module__, forward.__qualname__
        if type(module) is nn.Conv2d and _is_depthwise(module):
            module.__class__ = DepthwiseConv2d
        elif type(module) is nn.Conv2d and _is_of_patches(module):
            module.__class__ = PatchConv2d
        elif computed == _BLOCK_FORWARD:
            module.__class__ = block_class(_Block, type(module))
        elif computed == _POOLED_FORWARD:
            module.__class__ = block_class(_PooledConv2d, type(module))


def remove(model: nn.Module) -> None:
    """Take out what `install` put in: the model computes by PyTorch's operations alone again."""
    for module in model.modules():
        plain = _plain_class(type(module))
        if plain is not type(module):
            module.__class__ = plain


def installed(model: nn.Module) -> bool:
    """Whether any module of the model has been changed by `install`."""
    return any(isinstance(module, DepthwiseConv2d | PatchConv2d | _Faster) for module in model.modules())


def hold(model: nn.Module) -> None:
    """Let the blocks with kernels compute by them without gradient, too, from a copy of their weights in order.

    For a model in evaluation, until `release`. A weight that is written meanwhile is seen, unless through ``.data``.
    """
    for block in _blocks(model):
        block._held = {}


def release(model: nn.Module) -> None:
    """End `hold`, and give up the copies."""
    for block in _blocks(model):
        block._held = None


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """`hold`, and `release` at the end."""
    hold(model)
    try:
        yield
    finally:
        release(model)


def _blocks(model: nn.Module) -> "list[_Block]":
    return [module for module in model.modules() if isinstance(module, _Block)]


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with our kernel: see `install`."""

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        if usable(input, self):
            return depthwise_conv2d(input, self.weight, self.bias)
        if input.device.type == "cpu" and self.weight.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class PatchConv2d(nn.Conv2d):
    """A convolution of patches that lie side by side, as in a stem and in downsampling: see `install`.

    In bfloat16 PyTorch's gradient of the weights takes twice as long as that of the same product of matrices.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, D, H / P, W / P)``."""
        if not (_is_half_with_gradient(input, self.weight) and self._fits(input)):
            return super().forward(input)
        (n, channels, height, width), patch = input.shape, self.stride[0]
        rows, columns = height // patch, width // patch
        # Put in order as what is multiplied, which is half as wide.
        half = input.to(computed_in(input)).permute(0, 2, 3, 1)
        positions = half.view(n, rows, patch, columns, patch, channels)
        patches = positions.transpose(2, 3).reshape(n, rows, columns, -1)
        y = F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return y.permute(0, 3, 1, 2)

    def _fits(self, x: Tensor) -> bool:
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return channels_last and all(length % self.stride[0] == 0 for length in x.shape[2:]) and x.numel() > 0


def _is_half_with_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient will be asked of what is multiplied in bfloat16 on the CPU."""
    if _is_recorded(x) or not (x.is_cpu and weight.is_cpu and torch.is_grad_enabled() and weight.requires_grad):
        return False
    return computed_in(x) == torch.bfloat16 and _has_dtypes(x, weight)


class _Faster(nn.Module):
    """Comes before a module's own class in the order of inheritance, so that ``super()`` is that."""

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        # The class is made at run time, and cannot be imported by name.
        state = {name: value for name, value in vars(self).items() if name != "_held"}
        return empty_block, type(self).__bases__, state


class _PooledConv2d(_Faster, nn.Conv2d):
    """A convolution and max-pooling, whose gradient PyTorch writes twice."""

    pooling: int

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, D, H / pooling, W / pooling)``, rounded down."""
        y = self._conv_forward(x, self.weight, self.bias)
        return max_pool2d(y, self.pooling) if self._is_computed(y) else F.max_pool2d(y, self.pooling)

    def _is_computed(self, y: Tensor) -> bool:
        """Whether the kernel computes that here and now; compiles it when it first does."""
        wanted = y.is_cpu and torch.is_grad_enabled() and y.requires_grad and not _is_recorded(y)
        fits = (
            y.dtype in _DTYPES
            and y.ndim == 4
            and y.numel() > 0
            and min(y.shape[2:]) >= self.pooling <= MOST_KERNEL_SIZE
        )
        return wanted and fits and library() is not None


class _Block(_Faster):
    """A ConvNeXt block."""

    dwconv: nn.Conv2d
    norm: nn.LayerNorm
    pwconv1: nn.Linear
    pwconv2: nn.Linear
    drop_path: nn.Module
    gamma: Tensor | None
    _held: dict[torch.dtype, HeldBlock] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        if self._held is not None and not (torch.is_grad_enabled() or self.training or _is_recorded(x)):
            held = self._held_for(x)
            if held is not None:
                return held(x)
        if usable(x, self.dwconv) and _is_as_built(self) and multiplies(x, self.pwconv1.out_features):
            y, shortcut = convolve_with_shortcut(x, self.dwconv.weight, self.dwconv.bias)
            return mlp(y, shortcut, self.norm, self.pwconv1, self.pwconv2, self.gamma, self._drop_factor(x))
        out: Tensor = super().forward(x)
        return out

    def _drop_factor(self, x: Tensor) -> Tensor | None:
        """What stochastic depth multiplies each sample's branch by, ``(N,)``; None for 1."""
        if not self.training or self.drop_path.p == 0:
            return None
        factor: Tensor = self.drop_path(x.new_ones(len(x), 1, 1, 1, dtype=torch.float32))
        return factor.flatten()

    def _held_for(self, x: Tensor) -> HeldBlock | None:
        """The block with its weights in order for ``x``; None where the kernels do not compute that."""
        assert self._held is not None
        dtype = computed_in(x)
        held = self._held.get(dtype)
        if held is None or not held.is_current(self):
            one_type = {p.dtype for p in self.parameters()} == {torch.float32}
            if not (one_type and _computes(x, self.dwconv) and _is_as_built(self)):
                return None
            if not multiplies(x, self.pwconv1.out_features):
                return None
            held = self._held[dtype] = HeldBlock(self, dtype)
        fits = x.is_cpu and x.dtype in _DTYPES and x.ndim == 4 and x.shape[1] == self.dwconv.groups and x.numel() > 0
        return None if not fits or _is_listened_to(self) else held


_block_classes: dict[tuple[type, type], type[nn.Module]] = {}


def block_class(faster: type[nn.Module], plain: type[nn.Module]) -> type[nn.Module]:
    """The block's class whose ``forward`` is that of ``faster``, which can ask for its own."""
    if (faster, plain) not in _block_classes:
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
        _block_classes[faster, plain] = type(plain.__name__, (faster, plain), names)
    return _block_classes[faster, plain]


def empty_block(faster: type[nn.Module], plain: type[nn.Module]) -> nn.Module:
    """A block of that class without anything in it, for a copy."""
    block = block_class(faster, plain)
    return block.__new__(block)


def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a module without kernels."""
    if kind in (DepthwiseConv2d, PatchConv2d):
        return nn.Conv2d
    plain: type[nn.Module] = kind.__bases__[1] if issubclass(kind, _Faster) else kind
    return plain


def usable(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `depthwise_conv2d` computes here and now what the convolution does; compiles it when it first does."""
    return torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad) and _computes(x, conv)


def _computes(x: Tensor, conv: nn.Conv2d) -> bool:
    return (
        not _is_recorded(x)
        and x.device.type == conv.weight.device.type == "cpu"
        and _has_dtypes(x, conv.weight)
        and _is_depthwise(conv)
        and x.ndim == 4
        and x.shape[1] == conv.groups
        and x.numel() > 0
        and library() is not None
    )


def _is_recorded(x: Tensor) -> bool:
    """Whether PyTorch records operations or transforms them, in place of computing."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or type(x) is not Tensor
    )


def _has_dtypes(x: Tensor, weight: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return {x.dtype, weight.dtype} <= _DTYPES and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == weight.dtype and x.dtype in _DTYPES


def _is_depthwise(conv: nn.Conv2d) -> bool:
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


def _is_of_patches(conv: nn.Conv2d) -> bool:
    """Whether it is of squares that lie side by side."""
    patch = conv.stride[0]
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding == (0, 0)
    return plain and patch > 1 and conv.kernel_size == conv.stride == (patch, patch)


# A block's modules, in the order of computation, and what each must be for `_Block` to compute in place of all.
_MODULES: dict[str, type[nn.Module] | tuple[str, str]] = {
    "dwconv": DepthwiseConv2d,
    "norm": nn.LayerNorm,
    "pwconv1": nn.Linear,
    "act": nn.GELU,
    "grn": nn.Identity,
    "pwconv2": nn.Linear,
    "drop_path": _STOCHASTIC_DEPTH,
}


def _is_as_built(block: nn.Module) -> bool:
    """Whether the block's modules are of the types above, with parameters of one type on one device, and nobody listens
    to them or has put in a forward of his own."""
    modules = [getattr(block, name) for name in _MODULES]
    return (
        all(map(_is_plain, modules, _MODULES.values()))
        and not _is_listened_to(block)
        and len({(p.dtype, p.device) for module in modules for p in module.parameters()}) == 1
    )


def _is_listened_to(block: nn.Module) -> bool:
    """Whether anybody listens to the block's modules or has put in a forward of his own."""
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    return any(_is_changed(getattr(block, name)) for name in _MODULES)


def _is_plain(module: nn.Module, kind: type[nn.Module] | tuple[str, str]) -> bool:
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return False
    own = type(module)
    return kind in (own, (own.__module__, own.__qualname__)) and getattr(module, "bias", True) is not None


def _is_changed(module: nn.Module) -> bool:
    return "forward" in vars(module) or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
