"""What is done with a whole batch, on its device: normalising and mixing.

Importing it does not import torchvision, for which a prediction would wait.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convnext.config import AugmentSettings
from convnext.devices import send


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
        if images.shape[1] == 1 or not images.is_contiguous(memory_format=torch.channels_last):
            return images.float().sub_(self.mean).div_(self.std)
        # Broadcasting over a row of pixels in place of three channels: the same numbers in a third of the time on CPU.
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(count, height, width * channels).float()
        rows.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


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
    from torchvision.transforms import v2

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
        keep, lam = send(keep[:, None].to(images.dtype), images.device), send(lam[:, None], images.device)
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
