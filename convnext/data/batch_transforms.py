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


def is_mixed(settings: AugmentSettings) -> bool:
    """Whether there is any mixing."""
    return bool(settings.mix_probability and (settings.mixup or settings.cutmix))


def batch_mix(settings: AugmentSettings, num_classes: int) -> nn.Module | None:
    """Mixup and CutMix as the settings ask, or None for neither.

    Returns:
        A module from float images ``(N, C, H, W)`` and labels ``(N,)`` to images of the same shape and either those
        labels or, where it mixed, fractions of each class ``(N, num_classes)``. Draws from torch's global generator.
    """
    if not is_mixed(settings):
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

    def forward(self, images: Tensor, labels: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: ``(N, C, H, W)`` float.
            labels: ``(N,)``.
            draws: ``(N, 4)`` float32: 0 for Mixup and 1 for CutMix, the fraction that stays, and the row and column of
                the middle of CutMix's box, from 0 to 1; None draws them from torch's global generator.

        Returns:
            Mixed images, and class fractions ``(N, num_classes)``.
        """
        height, width = images.shape[2:]
        # Drawn on the CPU, so that all devices draw the same.
        draws = send(self._draw(len(images)), images.device) if draws is None else draws
        kind, lam, row, column = draws.unbind(1)
        half = 0.5 * torch.sqrt(1 - lam)
        rows, columns = _covered(row, half, height), _covered(column, half, width)
        inside = rows[:, :, None] & columns[:, None, :]
        cut = kind == 1
        lam = torch.where(cut, 1 - rows.sum(1) * columns.sum(1) / (height * width), lam)
        keep = torch.where(cut[:, None, None], (~inside).float(), lam[:, None, None])[:, None].to(images.dtype)
        one_hot = nn.functional.one_hot(labels, self.num_classes).float()
        mixed = torch.lerp(_rolled(images), images, keep)
        return mixed, torch.lerp(_rolled(one_hot), one_hot, lam[:, None])

    def _draw(self, count: int) -> Tensor:
        kind = torch.multinomial((self.alphas > 0).float(), count, replacement=True)
        alpha = self.alphas[kind]
        lam = torch._sample_dirichlet(torch.stack([alpha, alpha], 1))[:, 0]  # Beta(alpha, alpha), as torchvision
        lam[torch.rand(count) >= self.probability] = 1.0
        return torch.stack([kind.float(), lam, torch.rand(count), torch.rand(count)], 1)


def _rolled(x: Tensor) -> Tensor:
    """``x.roll(1, 0)``, which would not keep the memory format on every device."""
    return torch.cat([x[-1:], x[:-1]])


def _covered(center: Tensor, half: Tensor, length: int) -> Tensor:
    """Rows or columns ``(N, length)`` of a box a sample, cut off at the border; its center and half its size, ``(N,)``,
    are fractions of ``length``."""
    pixel = torch.arange(length, device=center.device) + 0.5
    return (pixel - (center * length)[:, None]).abs() < (half * length)[:, None]
