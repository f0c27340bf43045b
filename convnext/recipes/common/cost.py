"""What a recipe costs, counted from its model, its images and its epochs."""

import math
from collections import Counter
from dataclasses import dataclass

from convnext.data.datasets.catalogue import DATASETS
from convnext.data.resizing import sizes_by_epoch
from convnext.models import registry
from convnext.recipes import Recipe

GPU = "one NVIDIA A100"
_GPU_PEAK = 312e12  # its dense bf16 operations a second, from the manufacturer's data sheet
# ConvNeXt waits for memory: an RTX 3090 trains ConvNeXt-T at 794 images a second (timm's pull request 1747), and the
# memory of an A100 is twice as fast. A tenth of the peak is 1,170 images a second.
_GPU_FRACTION = 0.1
_CPU_RATE = 1e11  # operations a second on two AVX-512 cores in fp32; results/cifar10 had twice that, in bf16 with AMX
_LONGEST_ON_CPU = 24.0  # hours
_PASSES = 3  # forward and backward of a training step, in forward passes


@dataclass(frozen=True)
class Cost:
    """What a training costs.

    Attributes:
        parameters: of the model.
        image_size: side of the images in pixels; the last one, where it grows.
        forward: operations of one forward pass over one image of that size; a multiply-add is two.
        images: in an epoch; None where that depends on the user's data.
        epochs: passes over them.
        training: operations of the whole training, as three forward passes an image; None where `images` is.
    """

    parameters: int
    image_size: int
    forward: float
    images: int | None
    epochs: int
    training: float | None

    def __str__(self) -> str:
        text = f"{self.parameters:,} parameters; {_operations(self.forward)} for an image of {self.image_size} px"
        if self.training is None:
            return f"{text}, and {_operations(_PASSES * self.forward)} to train on it once"
        text += f"; {_operations(self.training)} for {self.images:,} training images x {self.epochs} epochs.\n"
        gpu_hours, cpu_hours = self.training / (_GPU_FRACTION * _GPU_PEAK) / 3600, self.training / _CPU_RATE / 3600
        speed = f"{100 * _GPU_FRACTION:g} % of its bf16 peak"
        text += f"Estimated, not measured: {_duration(gpu_hours)} on {GPU} at {speed}"
        if cpu_hours > _LONGEST_ON_CPU:
            return text
        text += f" (which small models do not reach), {_duration(cpu_hours)} on two CPU cores at "
        return text + f"{_operations(_CPU_RATE)} a second (in bf16 with AMX half of that: results/cifar10)"


def cost(recipe: Recipe) -> Cost:
    """The recipe's cost, with images of growing size counted at the size that they have in each epoch."""
    settings, data = recipe.settings, recipe.settings.data
    entry = DATASETS[data.name]
    model = registry.resolve(settings.model, 1 if entry.images.startswith("grey") else 3)
    sizes = Counter(sizes_by_epoch(data, settings.epochs))
    costs = {size: registry.cost(model, size, entry.classes or 1000) for size in sizes | {data.image_size: 0}}
    forward = {size: 2.0 * macs for size, (_, macs) in costs.items()}
    count = round(entry.splits["train"] * (1 - data.val_fraction)) if entry.splits else None
    over_epochs = sum(epochs * forward[size] for size, epochs in sizes.items())
    return Cost(
        parameters=costs[data.image_size][0],
        image_size=data.image_size,
        forward=forward[data.image_size],
        images=count,
        epochs=settings.epochs,
        training=None if count is None else _PASSES * count * over_epochs,
    )


def _operations(count: float) -> str:
    """``8.9e9`` as ``8.9 GFLOPs``."""
    power = min(21, max(6, int(math.log10(count)) // 3 * 3))
    return f"{count / 10**power:.3g} {'MGTPEZ'[power // 3 - 2]}FLOPs"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return "less than a minute"
    return f"{hours * 60:.0f} min" if hours < 1.5 else f"{hours:,.0f} h"
