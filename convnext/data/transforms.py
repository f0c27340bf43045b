"""From a picture to the uint8 pixels that a batch is made of.

Pixels stay uint8 until the batch is on its device, where `convnext.data.normalization` makes them float: a quarter of
the memory to move, and one operation a batch in place of one a sample.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
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


_RATIO = (3 / 4, 4 / 3)  # width over height of a random area


class TrainTransform:
    """Random augmentation; every draw comes from torch's global generator.

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
        if settings.flip:
            before.append(self._flip)
        pillow: list[nn.Module] = []  # faster there than on tensors
        if settings.color_jitter:
            pillow.append(v2.ColorJitter(*[settings.color_jitter] * 3))
        pillow += _policy(settings, fill)
        after = [v2.RandomErasing(settings.random_erasing, value=fill)] if settings.random_erasing else []
        through_pillow = [v2.ToPILImage(), *pillow, v2.PILToTensor()] if pillow else []
        self.steps = (*before, *through_pillow, *after)

    def __call__(self, picture: Picture) -> Tensor:
        """A random view of the picture."""
        pixels = self._crop(picture)
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def _flip(self, pixels: Tensor) -> Tensor:
        # As v2.RandomHorizontalFlip draws and does it, less the module around it, which takes longer than the flip.
        return functional.horizontal_flip_image(pixels) if torch.rand(1) < self.settings.flip else pixels

    def _crop(self, picture: Picture) -> Tensor:
        if self.settings.crop != "resized":
            return _tensor(picture.center(self.image_size, margin=1))
        width, height = picture.size
        # A tensor without memory: only its shape is asked for.
        shape = torch.empty((1, height, width), device="meta")
        top, left, rows, columns = RandomResizedCrop.get_params(shape, list(self.settings.crop_scale), list(_RATIO))
        box = left, top, left + columns, top + rows
        return _tensor(picture.resized(box, self.image_size, self.image_size))


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


def batch_mix(settings: AugmentSettings, num_classes: int) -> nn.Module | None:
    """Mixup and CutMix as the settings ask, or None for neither.

    Returns:
        A module from float images ``(N, C, H, W)`` and labels ``(N,)`` to images of the same shape and either those
        labels or, where it mixed, fractions of each class ``(N, num_classes)``. Draws from torch's global generator.
    """
    if not settings.mix_probability or not (settings.mixup or settings.cutmix):
        return None
    if settings.mix_by == "element":
        return ElementMix(settings.mixup, settings.cutmix, settings.mix_probability, num_classes)
    mixes: list[nn.Module] = []
    if settings.mixup:
        mixes.append(v2.MixUp(alpha=settings.mixup, num_classes=num_classes))
    if settings.cutmix:
        mixes.append(v2.CutMix(alpha=settings.cutmix, num_classes=num_classes))
    mix: nn.Module = v2.RandomApply([v2.RandomChoice(mixes)], p=settings.mix_probability)
    return mix


class ElementMix(nn.Module):
    """Mixup and CutMix drawn for every image by itself: whether, which of the two, and how much.

    torchvision's draw once a batch. Each image is mixed with the one before it in the batch.

    Args:
        mixup: alpha of Mixup (Zhang et al. 2018); 0 for none.
        cutmix: alpha of CutMix (Yun et al. 2019); 0 for none.
        probability: of an image to be mixed.
        num_classes: of the labels.
    """

    def __init__(self, mixup: float, cutmix: float, probability: float, num_classes: int) -> None:
        super().__init__()
        self.alphas = torch.tensor([mixup, cutmix])
        self.probability, self.num_classes = probability, num_classes

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C, H, W)`` and ``(N,)`` to mixed images and ``(N, num_classes)`` class fractions."""
        count, _, height, width = images.shape
        # Drawn on the CPU, so that all devices draw the same.
        kind = torch.multinomial((self.alphas > 0).float(), count, replacement=True)
        alpha = self.alphas[kind]
        lam = torch._sample_dirichlet(torch.stack([alpha, alpha], 1))[:, 0]  # Beta(alpha, alpha), as torchvision
        lam[torch.rand(count) >= self.probability] = 1.0
        rows, columns = _boxes(lam, height, width)
        inside = rows[:, :, None] & columns[:, None, :]
        cut = kind == 1
        lam = torch.where(cut, 1 - inside.float().mean((1, 2)), lam)
        keep = torch.where(cut[:, None, None], (~inside).float(), lam[:, None, None])
        keep, lam = keep[:, None].to(images.device, images.dtype), lam[:, None].to(images.device)
        one_hot = nn.functional.one_hot(labels, self.num_classes).float()
        mixed = torch.lerp(_rolled(images), images, keep)
        return mixed, torch.lerp(_rolled(one_hot), one_hot, lam)


def _rolled(x: Tensor) -> Tensor:
    """``x.roll(1, 0)``, which would not keep the memory format on every device."""
    return torch.cat([x[-1:], x[:-1]])


def _boxes(lam: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows ``(N, H)`` and columns ``(N, W)`` of a box a sample that covers ``1 - lam``, cut off at the border."""
    half = 0.5 * torch.sqrt(1 - lam)

    def covered(length: int) -> Tensor:
        center = torch.rand(len(lam)) * length
        pixel = torch.arange(length) + 0.5
        return (pixel - center[:, None]).abs() < (half * length)[:, None]

    return covered(height), covered(width)
