"""What our kernels for CPU gain over PyTorch's operations: forward, and forward with all gradients.

Ours and PyTorch's take turns on the same tensors in one process, with the allocator's settings of our trainer for both,
and each is judged by its median. The branch is all of a block but the depthwise convolution; pooling is that of squares
of two pixels, as behind a dense convolution.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --shapes 16,96,56 16,192,28 16,384,14 16,768,7 --precision bf16
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from command import positive, run_command
from torch import Tensor
from torch.nn import functional as F

from convnext import kernels
from convnext.devices import keep_freed_memory
from convnext.errors import UserError
from convnext.kernels.build import library
from convnext.models.convnext import Block

Half = Callable[[Block, Tensor], Tensor]


def our_convolution(block: Block, x: Tensor) -> Tensor:
    """With our kernel."""
    return kernels.depthwise_conv2d(x, block.dwconv.weight, block.dwconv.bias)


def torch_convolution(block: Block, x: Tensor) -> Tensor:
    """In float32 always: in bfloat16 PyTorch takes longer."""
    conv = block.dwconv
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(x, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)


def our_branch(block: Block, x: Tensor) -> Tensor:
    """With our kernels."""
    return kernels.mlp(x, x, block.norm, block.pwconv1, block.pwconv2, block.gamma, None)


def torch_branch(block: Block, x: Tensor) -> Tensor:
    """As the block computes without kernels."""
    hidden = block.act(block.pwconv1(block.norm(x.permute(0, 2, 3, 1))))
    y: Tensor = x + (block.gamma * block.pwconv2(hidden)).permute(0, 3, 1, 2)
    return y


def our_pooling(_: Block, x: Tensor) -> Tensor:
    """With our kernel."""
    return kernels.max_pool2d(x, 2)


def torch_pooling(_: Block, x: Tensor) -> Tensor:
    """As the model computes without kernels."""
    return F.max_pool2d(x, 2)


HALVES: dict[str, tuple[Half, Half]] = {
    "convolution": (our_convolution, torch_convolution),
    "branch": (our_branch, torch_branch),
    "pooling": (our_pooling, torch_pooling),
}


def seconds(half: Half, block: Block, x: Tensor, dy: Tensor, backward: bool, autocast: bool) -> float:
    """Of one forward pass, and of its gradients where asked: none is there before, as behind an optimizer's step, and
    that of the result has the result's type, as it comes from the next module."""
    block.zero_grad()
    x.grad = None
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = half(block, x)
    took = time.perf_counter() - started
    if backward:
        dy = dy.to(y.dtype)
        started = time.perf_counter()
        y.backward(dy)  # type: ignore[no-untyped-call]
        took += time.perf_counter() - started
    return took


def shape(text: str) -> tuple[int, int, int]:
    """Images, channels and height of ``--shapes``."""
    try:
        n, dim, size = map(int, text.split(","))
    except ValueError:
        n, dim, size = 0, 0, 0
    if min(n, dim) < 1 or size < 2:  # pooling is of two pixels
        raise argparse.ArgumentTypeError(f"{text!r} is not images,dim,size, such as 256,64,16, of at least 1,1,2")
    return n, dim, size


def check_kernels(shapes: list[tuple[int, int, int]], precision: str) -> None:
    """See that ours compute all of that.

    Raises:
        UserError: there are none, or none of that precision or for one of the shapes.
    """
    loaded = library()
    if loaded is None:
        raise UserError(f"there is nothing to measure: this computes by {kernels.describe()}")
    if (torch.bfloat16 if precision == "bf16" else torch.float32) not in loaded.products:
        raise UserError(f"there is no product of matrices in {precision}: this computes by {kernels.describe()}")
    for n, dim, size in shapes:
        if precision == "bf16" and dim % 2:
            raise UserError(f"--shapes {n},{dim},{size}: in bf16 the kernels need an even number of channels")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [(256, 64, 16), (256, 128, 8), (256, 256, 4)]
    parser.add_argument("--shapes", nargs="+", type=shape, default=shapes, help="images,dim,size")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=positive, default=15)
    options = parser.parse_args()
    check_kernels(options.shapes, options.precision)
    keep_freed_memory()
    print(f"{kernels.describe()}, {torch.get_num_threads()} threads, {options.precision}, {options.rounds} rounds")
    for n, dim, size in options.shapes:
        block = Block(dim, layer_scale=1.0)
        x, dy = (torch.randn(n, dim, size, size).contiguous(memory_format=torch.channels_last) for _ in range(2))
        for name, halves in HALVES.items():
            pair = x, dy
            if name == "pooling":  # in the type of what a convolution gives
                dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
                smaller = dy[..., : size // 2, : size // 2]
                pair = x.to(dtype), smaller.to(dtype).contiguous(memory_format=torch.channels_last)
            given, gradient = pair[0].detach().requires_grad_(), pair[1]
            for backward in (False, True):
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(options.rounds + 2):
                    for half, values in zip(halves, times, strict=True):
                        values.append(seconds(half, block, given, gradient, backward, options.precision == "bf16"))
                ours, theirs = (1e3 * statistics.median(values[2:]) for values in times)  # the first steps allocate
                what = f"{n}x{dim}x{size}x{size} {name}, forward{' and backward' if backward else ''}"
                print(f"{what}: ours {ours:.2f} ms, PyTorch {theirs:.2f} ms, ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    run_command(main)
