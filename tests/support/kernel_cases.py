"""Blocks and small models with all their gradients, for tests of the kernels."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import kernels
from convnext.models.convnext import Block, ConvNeXt


def error(got: Tensor, exact: Tensor) -> float:
    """Relative to the size of the exact result."""
    return float((got.double() - exact).norm() / exact.norm())


def errors(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [error(a, b) for a, b in zip(got, exact, strict=True)]


def results(y: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """An output and, for a gradient of ones and minus ones, those of the inputs."""
    signs = torch.where(torch.arange(y.numel()) % 3 == 0, 1.0, -1.0).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, signs)]


def block_and_input(dim: int, n: int, size: int, **options: float) -> tuple[Block, Tensor]:
    """A block with kernels, whose parameters are all drawn at random, and an input that wants a gradient."""
    torch.manual_seed(0)
    block = Block(dim, layer_scale=1.0, **options).train()  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(block.norm.weight, 1.0, 0.3)
    kernels.install(block)
    x = torch.randn(n, dim, size, size).contiguous(memory_format=torch.channels_last)
    return block, x.requires_grad_()


def run_block(block: Block, x: Tensor, autocast: bool = False) -> list[Tensor]:
    """The output and all gradients."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = block(x)
    return results(y, [x, *block.parameters()])


def without_kernels(block: Block, x: Tensor, autocast: bool = False) -> list[Tensor]:
    """The same with PyTorch's operations."""
    block = deepcopy(block)
    kernels.remove(block)
    return run_block(block, x, autocast)


def small_model(**options: float) -> tuple[ConvNeXt, Tensor]:
    """With kernels."""
    torch.manual_seed(0)
    model = ConvNeXt(depths=(1, 2), dims=(8, 16), patch_size=2, num_classes=3, layer_scale=1.0, **options)  # type: ignore[arg-type]
    kernels.install(model)
    return model.to(memory_format=torch.channels_last), torch.randn(4, 3, 16, 16)


def gradients(model: nn.Module, images: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Of all parameters; ``call`` stands for the model."""
    torch.manual_seed(1)
    loss = F.cross_entropy(model(images) if call is None else call(images), torch.tensor([0, 1, 2, 0]))
    return list(torch.autograd.grad(loss, list(model.parameters())))
