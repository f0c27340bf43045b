"""From a Pillow image to the uint8 pixels that a batch is made of.

Pixels stay uint8 until the batch is on its device, where `Normalize` makes them float: a quarter of the memory
to move, and one operation a batch in place of one a sample.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from convnext.config import AugmentSettings

Transform = Callable[[Image.Image], Tensor]


def train_transform(settings: AugmentSettings, image_size: int, mean: Sequence[float]) -> Transform:
    """Random augmentation; every draw comes from torch's global generator.

    Args:
        settings: what to do.
        image_size: side of the result in pixels.
        mean: channel means on a scale of 0 to 1, the colour of erased rectangles.

    Returns:
        A function from a Pillow image to ``(C, image_size, image_size)`` uint8.
    """
    steps: list[nn.Module] = []
    if settings.crop == "resized":
        steps.append(v2.RandomResizedCrop(image_size, settings.crop_scale, interpolation=InterpolationMode.BICUBIC))
    else:
        steps += _resize_and_center(image_size, 1.0)
        if settings.crop == "padding" and settings.crop_padding:
            padding_mode = "reflect" if settings.crop_padding < image_size else "constant"
            steps.append(v2.RandomCrop(image_size, settings.crop_padding, padding_mode=padding_mode))
    if settings.flip:
        steps.append(v2.RandomHorizontalFlip(settings.flip))
    if settings.color_jitter:
        steps.append(v2.ColorJitter(*[settings.color_jitter] * 3))
    fill = [round(255 * value) for value in mean]
    if settings.policy == "randaugment":
        steps.append(
            v2.RandAugment(
                settings.randaugment_ops,
                settings.randaugment_magnitude,
                interpolation=InterpolationMode.BILINEAR,
                fill=fill,
            )
        )
    elif settings.policy == "autoaugment":
        learned = v2.AutoAugmentPolicy(settings.autoaugment)
        steps.append(v2.AutoAugment(learned, interpolation=InterpolationMode.BILINEAR, fill=fill))
    elif settings.policy == "trivialaugment":
        steps.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=fill))
    steps.append(v2.PILToTensor())
    if settings.erasing:
        steps.append(v2.RandomErasing(settings.erasing, value=fill))
    composed: Transform = v2.Compose(steps)
    return composed


def eval_transform(image_size: int, center_crop: float = 1.0) -> Transform:
    """Resize the shorter side to ``image_size / center_crop`` pixels and keep the square in the middle.

    Returns:
        A function from a Pillow image to ``(C, image_size, image_size)`` uint8.
    """
    composed: Transform = v2.Compose([*_resize_and_center(image_size, center_crop), v2.PILToTensor()])
    return composed


def _resize_and_center(image_size: int, center_crop: float) -> list[nn.Module]:
    resize = v2.Resize(round(image_size / center_crop), interpolation=InterpolationMode.BICUBIC)
    return [resize, v2.CenterCrop(image_size)]


class Normalize(nn.Module):
    """``(N, C, H, W)`` uint8 to float32 of mean 0 and standard deviation 1 a channel.

    Args:
        mean: channel means on a scale of 0 to 1.
        std: channel standard deviations on that scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized float32 images, in the memory format of ``images``."""
        return images.float().sub_(self.mean).div_(self.std)


def batch_mix(settings: AugmentSettings, num_classes: int) -> nn.Module | None:
    """Mixup and CutMix as the settings ask, or None for neither.

    Returns:
        A module from float images ``(N, C, H, W)`` and labels ``(N,)`` to images of the same shape and either those
        labels or, where it mixed, shares of each class ``(N, num_classes)``. Draws from torch's global generator.
    """
    mixes: list[nn.Module] = []
    if settings.mixup:
        mixes.append(v2.MixUp(alpha=settings.mixup, num_classes=num_classes))
    if settings.cutmix:
        mixes.append(v2.CutMix(alpha=settings.cutmix, num_classes=num_classes))
    if not mixes or not settings.mix_probability:
        return None
    mix: nn.Module = v2.RandomApply([v2.RandomChoice(mixes)], p=settings.mix_probability)
    return mix
