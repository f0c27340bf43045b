"""What our kernels for views of batches on a CPU gain over PyTorch's operations: resized crops and affine transforms.

Both make the same bits of the same images, in turns in one process, with the allocator's settings of our trainer, and
each is judged by its median.

    python benchmarks/views.py
    python benchmarks/views.py --size 32 --batch 256
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from command import positive, run_command
from record import where
from torch import Tensor

from convnext.config import AugmentSettings
from convnext.data.batch_augment import BatchAugment
from convnext.data.batch_ops import MATRICES, Affine
from convnext.devices import keep_freed_memory
from convnext.errors import UserError
from convnext.kernels.views import can_view

ROUNDS = 100
CPU = torch.device("cpu")
Make = Callable[[], Tensor]


def resized_crops(pixels: Tensor) -> tuple[Make, Make]:
    """Random areas of the images, resized to their size: by our kernel, and by PyTorch one by one."""
    size, images = pixels.shape[1], torch.arange(len(pixels))
    augment = AugmentSettings(crop_scale=(0.25, 1.0))
    ours, theirs = (
        BatchAugment(augment, size, (size, size), (0.5,) * 3, 0, CPU, together) for together in (None, False)
    )
    views = ours.draw(torch.stack([torch.zeros_like(images), images, images], 1))
    return lambda: ours(pixels, images, views), lambda: theirs(pixels, images, views)


def affine(name: str, pixels: Tensor) -> tuple[Make, Make]:
    """The images, each by another strength of an affine transform."""
    strongest = {"Rotate": 135.0, "TranslateX": 32.0, "TranslateY": 32.0}.get(name, 0.99)
    strengths = np.linspace(-strongest, strongest, len(pixels)).tolist()
    transform = Affine(name, strengths, pixels.shape[1], (128, 128, 128), CPU)
    numbers = torch.arange(len(pixels))
    return lambda: transform(pixels, numbers), lambda: transform.by_operations(pixels, numbers)


def medians(contestants: tuple[Make, Make], rounds: int) -> list[float]:
    """Seconds of each; UserError where they do not make the same."""
    ours, theirs = (make() for make in contestants)
    if not torch.equal(ours, theirs):
        raise UserError("our kernel makes other images than PyTorch's operations")
    took: list[list[float]] = [[], []]
    for _ in range(rounds):
        for make, seconds in zip(contestants, took, strict=True):
            started = time.perf_counter()
            make()
            seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in took]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=positive, default=64, help="width and height of the images")
    parser.add_argument("--batch", type=positive, default=128, help="images")
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    options = parser.parse_args()
    shape = options.batch, options.size, options.size, 3
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    if not can_view(pixels):
        raise UserError("the kernels are not there: `convnext env` says why")
    print(where("cpu"))
    keep_freed_memory()
    cases = {"crop": resized_crops(pixels)} | {name: affine(name, pixels) for name in MATRICES}
    for name, contestants in cases.items():
        ours, theirs = (1e6 * seconds / options.batch for seconds in medians(contestants, options.rounds))
        print(f"{name:10}  ours {ours:5.1f} us an image, PyTorch {theirs:5.1f} us, ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    run_command(main)
