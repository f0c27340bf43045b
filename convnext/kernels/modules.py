"""A model's modules with our kernels in them: `install`, `remove`, `hold`, `release`.

Parameters, state dict and class names stay. Pickling and copying work, and what is copied has the kernels too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.kernels.build import library
from convnext.kernels.conditions import (
    BLOCK_FORWARD,
    DTYPES,
    LAYER_NORM_FORWARD,
    POOLED_FORWARD,
    STOCHASTIC_DEPTH,
    forward_of,
    has_dtypes,
    is_depthwise,
    is_listened_to,
    is_of_patches,
    is_plain,
    is_recorded,
)
from convnext.kernels.depthwise import convolve_with_shortcut, depthwise_conv2d
from convnext.kernels.downsampling import HalfDownsampling, HalfLayerNorm2d, PatchConv2d
from convnext.kernels.faster import Faster, class_of
from convnext.kernels.held import HeldBlock
from convnext.kernels.mlp import computed_in, mlp, multiplies
from convnext.kernels.pooling import MOST_KERNEL_SIZE, max_pool2d


def install(model: nn.Module) -> None:
    """Let the model train faster on CPU, by our kernels where they apply and by PyTorch's operations elsewhere.

    Convolutions of any model that are depthwise or of patches, and the blocks, norms and pooled convolutions of
    `convnext.models.convnext`, get other classes, which compute the same. Under autocast on CPU depthwise ones stay in
    float32 where no kernel applies: PyTorch's gradient of their weights takes three times as long in bfloat16. Modules
    on other devices, subclasses with a forward of their own, and what is already installed are left as they are.

    Args:
        model: on the device where it will train; it is changed in place.
    """
    for module in model.modules():
        if not all(p.is_cpu for p in module.parameters()):
            continue
        computed = forward_of(module)
        if type(module) is nn.Conv2d and is_depthwise(module):
            module.__class__ = DepthwiseConv2d
        elif type(module) is nn.Conv2d and is_of_patches(module):
            module.__class__ = PatchConv2d
        elif computed in _FASTER:
            module.__class__ = class_of(_FASTER[computed], type(module))
        elif _is_downsampling(module):
            module.__class__ = class_of(HalfDownsampling, nn.Sequential)


def remove(model: nn.Module) -> None:
    """Take out what `install` put in: the model computes by PyTorch's operations alone again."""
    for module in model.modules():
        plain = _plain_class(type(module))
        if plain is not type(module):
            module.__class__ = plain


def installed(model: nn.Module) -> bool:
    """Whether any module of the model has been changed by `install`."""
    return any(isinstance(module, DepthwiseConv2d | PatchConv2d | Faster) for module in model.modules())


def hold(model: nn.Module) -> None:
    """Let the blocks with kernels compute by them without gradient, too, from a copy of their weights in order, and in
    bfloat16 the downsampling.

    For a model in evaluation, until `release`. A weight that is written meanwhile is seen, unless through ``.data``.
    """
    for module in _holding(model):
        module._held = {}


def release(model: nn.Module) -> None:
    """End `hold`, and give up the copies."""
    for module in _holding(model):
        module._held = None


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """`hold`, and `release` at the end."""
    hold(model)
    try:
        yield
    finally:
        release(model)


def _holding(model: nn.Module) -> "list[_Block | HalfDownsampling]":
    return [module for module in model.modules() if isinstance(module, _Block | HalfDownsampling)]


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


class _PooledConv2d(Faster, nn.Conv2d):
    """A convolution and max-pooling, whose gradient PyTorch writes twice."""

    pooling: int

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, D, H / pooling, W / pooling)``, rounded down."""
        y = self._conv_forward(x, self.weight, self.bias)
        return max_pool2d(y, self.pooling) if self._is_computed(y) else F.max_pool2d(y, self.pooling)

    def _is_computed(self, y: Tensor) -> bool:
        """Whether the kernel computes that here and now; compiles it when it first does."""
        wanted = y.is_cpu and torch.is_grad_enabled() and y.requires_grad and not is_recorded(y)
        fits = (
            y.dtype in DTYPES and y.ndim == 4 and y.numel() > 0 and min(y.shape[2:]) >= self.pooling <= MOST_KERNEL_SIZE
        )
        return wanted and fits and library() is not None


class _Block(Faster):
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
        if self._held is not None and not (torch.is_grad_enabled() or self.training or is_recorded(x)):
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
        if held is None or not held.is_current():
            one_type = {p.dtype for p in self.parameters()} == {torch.float32}
            if not (one_type and _computes(x, self.dwconv) and _is_as_built(self)):
                return None
            if not multiplies(x, self.pwconv1.out_features):
                return None
            held = self._held[dtype] = HeldBlock(self, dtype)
        fits = x.is_cpu and x.dtype in DTYPES and x.ndim == 4 and x.shape[1] == self.dwconv.groups and x.numel() > 0
        return None if not fits or is_listened_to(getattr(self, name) for name in _MODULES) else held


# What is computed in place of which forward; a class that has one of its own is left alone.
_FASTER: dict[tuple[str, str], type[nn.Module]] = {
    BLOCK_FORWARD: _Block,
    POOLED_FORWARD: _PooledConv2d,
    LAYER_NORM_FORWARD: HalfLayerNorm2d,
}


def _is_downsampling(module: nn.Module) -> bool:
    """Whether it is a norm of the models' and a convolution of PyTorch's."""
    if type(module) is not nn.Sequential or len(module) != 2:
        return False
    norm, conv = module
    return type(conv) is nn.Conv2d and forward_of(norm) == LAYER_NORM_FORWARD


def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a module without kernels."""
    if kind in (DepthwiseConv2d, PatchConv2d):
        return nn.Conv2d
    plain: type[nn.Module] = kind.__bases__[1] if issubclass(kind, Faster) else kind
    return plain


def usable(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `depthwise_conv2d` computes here and now what the convolution does; compiles it when it first does."""
    return torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad) and _computes(x, conv)


def _computes(x: Tensor, conv: nn.Conv2d) -> bool:
    return (
        not is_recorded(x)
        and x.device.type == conv.weight.device.type == "cpu"
        and has_dtypes(x, conv.weight)
        and is_depthwise(conv)
        and x.ndim == 4
        and x.shape[1] == conv.groups
        and x.numel() > 0
        and library() is not None
    )


# A block's modules, in the order of computation, and what each must be for `_Block` to compute in place of all.
_MODULES: dict[str, type[nn.Module] | tuple[str, str]] = {
    "dwconv": DepthwiseConv2d,
    "norm": nn.LayerNorm,
    "pwconv1": nn.Linear,
    "act": nn.GELU,
    "grn": nn.Identity,
    "pwconv2": nn.Linear,
    "drop_path": STOCHASTIC_DEPTH,
}


def _is_as_built(block: nn.Module) -> bool:
    """Whether the block's modules are of the types above, with parameters of one type on one device, and nobody listens
    to them or has put in a forward of his own."""
    modules = [getattr(block, name) for name in _MODULES]
    return (
        all(map(is_plain, modules, _MODULES.values()))
        and not is_listened_to(modules)
        and len({(p.dtype, p.device) for module in modules for p in module.parameters()}) == 1
    )
