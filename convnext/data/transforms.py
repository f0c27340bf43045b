"""From a picture to the uint8 pixels that a batch is made of.

Pixels stay uint8 until the batch is on its device, where `Normalize` of `convnext.data.batch_transforms` makes them
float: a quarter of the memory to move, and one operation a batch in place of one a sample.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional

from convnext.config import AugmentSettings
from convnext.data.images import Picture
from convnext.data.interpolation import Pixels


class Transform(Protocol):
    """From a picture to ``(C, image_size, image_size)`` uint8."""

    image_size: int

    def __call__(self, picture: Picture) -> Tensor:
        """The picture's pixels, changed."""


CROP_RATIO = (3 / 4, 4 / 3)  # width over height of a random area


class TrainTransform:
    """Random augmentation; every draw comes from torch's global generator. Alternating flips depend on the
    epoch, so that `convnext.data.loading.loader.AugmentedImages` does them.

    Called with a picture, gives ``(C, image_size, image_size)`` uint8.

    Args:
        settings: what to do.
        image_size: width and height of the result in pixels.
        mean: channel means on a scale of 0 to 1, the colour of erased rectangles.
    """

    def __init__(self, settings: AugmentSettings, image_size: int, mean: Sequence[float]) -> None:
        self.settings, self.image_size = settings, image_size
        fill = [round(255 * value) for value in mean]
        before: list[Callable[[Tensor], Tensor]] = []
        if settings.crop == "padding" and settings.crop_padding:
            before.append(_PaddedCrop(image_size, settings.crop_padding))
        if settings.flip and settings.flip != "alternate":
            before.append(_Flip(settings.flip))
        pillow: list[nn.Module] = []  # faster there than on tensors
        if settings.color_jitter:
            pillow.append(v2.ColorJitter(*[settings.color_jitter] * 3))
        pillow += _policy(settings, fill)
        after = [v2.RandomErasing(settings.random_erasing, value=fill)] if settings.random_erasing else []
        through_pillow: list[Callable[..., Any]] = [_to_pillow, *pillow, _from_pillow] if pillow else []
        self.steps: tuple[Callable[..., Any], ...] = (*before, *through_pillow, *after)

    def __call__(self, picture: Picture) -> Tensor:
        """A random view of the picture."""
        pixels = self._crop(picture)
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def _crop(self, picture: Picture) -> Tensor:
        if self.settings.crop != "resized":
            return _tensor(picture.center(self.image_size, margin=1))
        width, height = picture.size
        # A tensor without memory: only its shape is asked for.
        shape = torch.empty((1, height, width), device="meta")
        top, left, rows, columns = RandomResizedCrop.get_params(shape, list(self.settings.crop_scale), list(CROP_RATIO))
        box = left, top, left + columns, top + rows
        return _tensor(picture.resized(box, self.image_size, self.image_size))


class _Flip:
    """As ``v2.RandomHorizontalFlip``, less the module around it, which takes longer than the flip."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, pixels: Tensor) -> Tensor:
        return functional.horizontal_flip_image(pixels) if torch.rand(1) < self.probability else pixels


class _PaddedCrop:
    """As ``v2.RandomCrop(size, padding, padding_mode="reflect")``, in a quarter of its time: of all that is done with
    a small image, that would take the longest."""

    def __init__(self, size: int, padding: int) -> None:
        self.size = size
        self.padded = torch.from_numpy(np.pad(np.arange(size), padding, mode="reflect"))

    def __call__(self, pixels: Tensor) -> Tensor:
        top, left = torch.randint(len(self.padded) - self.size + 1, (2,)).tolist()
        rows, columns = self.padded[top : top + self.size], self.padded[left : left + self.size]
        # In HWC order, as images are batched.
        return pixels.permute(1, 2, 0).index_select(0, rows).index_select(1, columns).permute(2, 0, 1)


def _to_pillow(pixels: Tensor) -> Image.Image:
    """As ``v2.ToPILImage`` of uint8, which for a small image takes longer than what is then done to it."""
    rows = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(rows[..., 0] if rows.shape[-1] == 1 else rows)


def _from_pillow(image: Image.Image) -> Tensor:
    rows = np.array(image)
    return torch.from_numpy(rows[..., None] if rows.ndim == 2 else rows).permute(2, 0, 1)


def _policy(settings: AugmentSettings, fill: list[int]) -> list[nn.Module]:
    bilinear = InterpolationMode.BILINEAR
    if settings.policy == "randaugment":
        ops, magnitude = settings.randaugment_ops, settings.randaugment_magnitude
        return [v2.RandAugment(ops, magnitude, interpolation=bilinear, fill=fill)]
    if settings.policy == "autoaugment":
        return [v2.AutoAugment(v2.AutoAugmentPolicy(settings.autoaugment), interpolation=bilinear, fill=fill)]
    if settings.policy == "trivialaugment":
        return [v2.TrivialAugmentWide(interpolation=bilinear, fill=fill)]
    return []


class EvalTransform:
    """The square in the middle, as `convnext.data.images.Picture.center` makes it.

    Called with a picture, gives ``(C, image_size, image_size)`` uint8.

    Args:
        image_size: width and height of the result in pixels.
        center_crop: as there.
        margin: as there.
    """

    def __init__(self, image_size: int, center_crop: float = 1.0, margin: int = 2) -> None:
        self.image_size, self.center_crop, self.margin = image_size, center_crop, margin

    def __call__(self, picture: Picture) -> Tensor:
        """The middle of the picture."""
        return _tensor(picture.center(self.image_size, self.center_crop, self.margin))


def _tensor(pixels: Pixels) -> Tensor:
    """Pixels ``(H, W, C)`` as ``(C, H, W)``, in the same memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)
