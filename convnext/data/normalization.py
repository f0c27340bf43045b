"""From a batch's uint8 pixels to what a model takes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
