"""Random views of a whole batch of stored images, on their device: crop, flip, policy and erasing.

They do what `convnext.data.transforms.TrainTransform` does for one image. Each image's draws are a function of (seed,
epoch, image, repetition) alone, and the same bits on every device: see `convnext.data.draws`.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from convnext.config import AugmentSettings
from convnext.data.batch_policy import BatchPolicy, Group
from convnext.data.draws import integers, occurs, pick, quantiles, words_for
from convnext.data.interpolation import torch_interpolate, windows
from convnext.data.transforms import CROP_RATIO
from convnext.kernels.views import Windows, can_view, resized_crops

_ERASED, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # area and height over width of a rectangle, as v2.RandomErasing
_ATTEMPTS = 10  # at a rectangle that fits, as there and in RandomResizedCrop
# Purposes; the number of an attempt is added.
_DECISIONS, _AREA, _ERASING, _MIXING, _ALTERNATING, _POLICY = range(0, 6 * 2**8, 2**8)


class BatchAugment:
    """Draws views of stored images, and makes them.

    Args:
        settings: what to do.
        image_size: width and height of the result in pixels.
        stored: height and width of the stored images; ``image_size`` both, unless the crop is of a random area.
        mean: channel means on a scale of 0 to 1, the colour of erased rectangles.
        seed: of all draws.
        device: where the images are.
        together: whether random areas are resized with an operation for all images of a batch, or one by one; None for
            what is fastest there: on a CPU by our kernel, and without it one by one.

    Attributes:
        policy: what is done with the images besides, which `__call__` takes as its ``changes``; or None.
    """

    def __init__(
        self,
        settings: AugmentSettings,
        image_size: int,
        stored: tuple[int, int],
        mean: Sequence[float],
        seed: int,
        device: torch.device,
        together: bool | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        fill = [round(255 * value) for value in mean]
        self.policy: BatchPolicy | None = None
        if settings.policy != "none" or settings.color_jitter:
            self.policy = BatchPolicy(settings, image_size, fill, seed, _POLICY, device)
        self._crop: _Padded | _Resized
        if settings.crop == "resized":
            self._crop = _Resized(settings.crop_scale, image_size, stored, device, together)
        else:
            self._crop = _Padded(settings.crop_padding if settings.crop == "padding" else 0, image_size, device)
        # Numbers of the rows, and of the column for each value in a row.
        self._rows = torch.arange(image_size, device=device)
        self._values = self._rows.repeat_interleave(len(mean))
        self._fill = torch.tensor(fill, dtype=torch.uint8, device=device).repeat(image_size)
        self._all_bits = torch.full((), 255, dtype=torch.uint8, device=device)
        largest = image_size - 1, image_size - 1
        self._rectangles = _Rectangles((image_size, image_size), largest, _ERASED, _ERASED_RATIO, device)

    def draw(self, keys: Tensor) -> Tensor:
        """The views of images.

        Args:
            keys: ``(n, 3)`` int64, of each epoch, index and repetition.

        Returns:
            ``(n, 9)`` int64: top, left, height and width of what is cropped, whether it is turned round, and top, left,
            height and width of what is erased.
        """
        area = self._crop.draw(words_for(keys, _AREA, self._crop.attempts, self.seed))
        decisions = words_for(keys, _DECISIONS, 1, self.seed)[:, 0]
        flipped = self._flipped(keys, decisions[:, :1])
        erased = torch.zeros_like(area)
        if self.settings.random_erasing:
            erased = self._rectangles(words_for(keys, _ERASING, _ATTEMPTS, self.seed))
            erased = erased * occurs(decisions[:, 1:2], self.settings.random_erasing)
        return torch.cat([area, flipped, erased], 1)

    def _flipped(self, keys: Tensor, words: Tensor) -> Tensor:
        """``(n, 1)``, 1 for an image that is turned round; ``words`` are of this epoch's view."""
        if self.settings.flip != "alternate":
            return occurs(words, self.settings.flip)
        of_image = torch.cat([torch.zeros_like(keys[:, :1]), keys[:, 1:]], 1)
        return (words_for(of_image, _ALTERNATING, 1, self.seed)[:, 0, :1] + keys[:, :1]) % 2

    def __call__(self, pixels: Tensor, images: Tensor, views: Tensor, changes: Sequence[Group] = ()) -> Tensor:
        """Views of some of the images.

        Args:
            pixels: of all of them, ``(N, *stored, C)`` uint8.
            images: ``(n,)`` int64, which of them.
            views: ``(n, 9)``, of `draw`.
            changes: of `BatchPolicy.draw`.

        Returns:
            ``(n, image_size, image_size, C)`` uint8.
        """
        made = self._crop(pixels, images, views[:, :4], views[:, 4].bool())
        if self.policy is not None:
            made = self.policy(made, changes)
        if not self.settings.random_erasing:
            return made
        top, left, height, width = views[:, 5:, None].unbind(1)
        rows = ((self._rows >= top) & (self._rows < top + height)) * self._all_bits
        values = ((self._values >= left) & (self._values < left + width)) * self._all_bits
        # `torch.where` by bits, which a CPU does ten times as fast for bytes.
        before = made.flatten(2)
        return (before ^ ((before ^ self._fill) & rows[:, :, None] & values[:, None, :])).view_as(made)


class _Rectangles:
    """Rectangles in an image of ``size``, height and width, with a uniform fraction of its area and a log-uniform ratio
    of height to width, of which the first is taken that is not larger than ``largest``; of none the size is 0."""

    def __init__(
        self,
        size: tuple[int, int],
        largest: tuple[int, int],
        fraction: tuple[float, float],
        ratio: tuple[float, float],
        device: torch.device,
    ) -> None:
        self._size, self._largest = (torch.tensor(lengths, device=device) for lengths in (size, largest))
        smallest, longest = (size[0] * size[1] * value for value in fraction)
        # Roots, so that a length is a product of the two.
        self._areas = quantiles(lambda u: np.sqrt(smallest + (longest - smallest) * u)).to(device)
        low, high = (math.log(value) / 2 for value in ratio)
        self._ratios = quantiles(lambda u: np.exp(low + (high - low) * u)).to(device)

    def __call__(self, words: Tensor) -> Tensor:
        """Of words ``(n, attempts, 4)`` top, left, height and width ``(n, 4)``."""
        area, ratio = pick(words[..., 0], self._areas), pick(words[..., 1], self._ratios)
        lengths = torch.stack([area * ratio, area / ratio], -1).round().long()
        fits = ((lengths > 0) & (lengths <= self._largest)).all(-1)
        starts = integers(words[..., 2:], self._size + 1 - lengths)
        rectangles = torch.cat([starts, lengths], -1) * fits[..., None]
        # Numbered backwards, so that the first of those that fit has the largest number.
        numbers = fits * torch.arange(words.shape[1], 0, -1, device=words.device)
        first = numbers.argmax(1)[:, None, None].expand(-1, 1, 4)
        return rectangles.gather(1, first)[:, 0]


class _Padded:
    """Crops of images with a reflected border of ``padding`` pixels; the images themselves where that is 0."""

    attempts = 1

    def __init__(self, padding: int, image_size: int, device: torch.device) -> None:
        self._offsets = 2 * padding + 1
        self._padded = torch.from_numpy(np.pad(np.arange(image_size), padding, mode="reflect")).to(device)
        self._positions = torch.arange(image_size, device=device)

    def draw(self, words: Tensor) -> Tensor:
        """Top, left, height and width in the padded image ``(n, 4)``, by words ``(n, 1, 4)``."""
        starts = integers(words[:, 0, :2], self._offsets)
        return torch.cat([starts, torch.full_like(starts, len(self._positions))], 1)

    def __call__(self, pixels: Tensor, images: Tensor, areas: Tensor, flipped: Tensor) -> Tensor:
        """See `BatchAugment.__call__`; ``areas`` ``(n, 4)``, ``flipped`` ``(n,)``."""
        size, channels = len(self._positions), pixels.shape[-1]
        rows = self._padded[areas[:, :1] + self._positions]
        columns = self._padded[areas[:, 1:2] + _ordered(self._positions, flipped)]
        index = ((images[:, None] * size + rows) * size)[:, :, None] + columns[:, None, :]
        # One look-up of whole pixels: three times as fast on a CPU as by an index a dimension.
        return pixels.view(-1, channels).index_select(0, index.flatten()).view(-1, size, size, channels)


class _Resized:
    """Crops of random areas of images of the size ``stored``, resized (bicubic, antialiased) as
    `convnext.data.images.Picture` does it: to the same bits, for that is arithmetic with integers. ``together`` with
    an operation for all images, as a GPU needs it; or one by one, which takes a CPU a fraction of the time; None as of
    `BatchAugment`."""

    attempts = _ATTEMPTS

    def __init__(
        self,
        scale: tuple[float, float],
        image_size: int,
        stored: tuple[int, int],
        device: torch.device,
        together: bool | None,
    ) -> None:
        self._together = together
        low, high = (1 / value for value in reversed(CROP_RATIO))
        self._rectangles = _Rectangles(stored, stored, scale, (low, high), device)
        self._otherwise = torch.tensor(_middle(*stored), device=device)
        self._positions = torch.arange(image_size, device=device)
        tables = [windows(length, image_size, length / image_size) for length in range(1, max(stored) + 1)]
        most = max(len(row) for _, weights, _ in tables for row in weights)
        padded = [[np.pad(row, (0, most - len(row))) for row in weights] for _, weights, _ in tables]
        self._windows = Windows(
            torch.tensor([starts for starts, _, _ in tables], device=device),
            torch.from_numpy(np.array(padded)).int().to(device),
            torch.tensor([precision for _, _, precision in tables], dtype=torch.int32, device=device),
        )

    def draw(self, words: Tensor) -> Tensor:
        """Top, left, height and width in the stored image ``(n, 4)``, by words ``(n, attempts, 4)``."""
        areas = self._rectangles(words)
        return torch.where(areas[:, 2:3] > 0, areas, self._otherwise)

    def __call__(self, pixels: Tensor, images: Tensor, areas: Tensor, flipped: Tensor) -> Tensor:
        """See `BatchAugment.__call__`; ``areas`` ``(n, 4)``, ``flipped`` ``(n,)``."""
        if self._together is None and can_view(pixels):
            return resized_crops(pixels, images, areas, flipped, self._windows)
        if not self._together and pixels.is_cpu:
            return self._one_by_one(pixels, images, areas, flipped)
        rows = self._resampled(pixels[images], 2, areas[:, 1], areas[:, 3], _ordered(self._positions, flipped))
        return self._resampled(rows, 1, areas[:, 0], areas[:, 2], self._positions.expand(len(images), -1))

    def _one_by_one(self, pixels: Tensor, images: Tensor, areas: Tensor, flipped: Tensor) -> Tensor:
        size = len(self._positions)
        made = torch.empty(len(images), size, size, pixels.shape[-1], dtype=torch.uint8)
        stored, whole = pixels.numpy(), f"V{pixels.shape[-1]}"  # pixels as items, which are turned round faster
        results = made.numpy().view(whole)
        drawn = zip(images.tolist(), areas.tolist(), flipped.tolist(), results, strict=True)
        for image, (top, left, height, width), turned, result in drawn:
            view = torch_interpolate(stored[image, top : top + height, left : left + width], (size, size))
            columns = np.ascontiguousarray(view).view(whole)
            result[:] = columns[:, ::-1] if turned else columns
        return made

    def _resampled(self, pixels: Tensor, dim: int, start: Tensor, length: Tensor, order: Tensor) -> Tensor:
        """Pixels ``(n, H, W, C)`` from ``start`` on for ``length``, both ``(n,)``, resized along a dimension; ``order``
        ``(n, image_size)`` is that of the result."""
        shape = list(pixels.shape)
        shape[dim] = len(self._positions)
        along = (-1, *(shape[dim] if d == dim else 1 for d in (1, 2, 3)))
        table = length[:, None] - 1
        first, weights = start[:, None] + self._windows.first[table, order], self._windows.weights[table, order]
        digits = self._windows.digits[length - 1].view(-1, 1, 1, 1)
        total = (1 << (digits - 1)).expand(shape)
        for number, weight in enumerate(weights.unbind(-1)):
            index = (first + number).clamp_(max=pixels.shape[dim] - 1)  # beyond the area weights are 0
            total = total + weight.view(along) * pixels.gather(dim, index.view(along).expand(shape))
        return (total >> digits).clamp_(0, 255).to(torch.uint8)


class MixingDraws:
    """What `convnext.data.batch_transforms.ElementMix` draws, for each image by its key.

    Args:
        settings: with ``mix_by`` "element".
        seed: of all draws.
        device: where they are made.
    """

    def __init__(self, settings: AugmentSettings, seed: int, device: torch.device) -> None:
        self.settings, self.seed = settings, seed
        kinds = {kind: alpha for kind, alpha in enumerate((settings.mixup, settings.cutmix)) if alpha}
        self._kinds = torch.tensor(list(kinds), device=device)
        tables = [quantiles(partial(betaincinv, alpha, alpha)) for alpha in kinds.values()]
        self._lam = torch.stack(tables).to(device)

    def __call__(self, keys: Tensor) -> Tensor:
        """Draws of images with these ``keys``, ``(n, 3)``, as `ElementMix` takes them."""
        first, second = words_for(keys, _MIXING, 2, self.seed).unbind(1)
        kind = integers(first[:, 0], len(self._kinds))
        mixed = occurs(first[:, 1], self.settings.mix_probability)
        lam = torch.where(mixed, self._lam[kind, first[:, 2] >> 16], 1.0)
        centers = (second[:, :2] >> 8).float() / 2**24  # as many bits as float32 holds
        return torch.cat([self._kinds[kind, None].float(), lam[:, None], centers], 1)


def _ordered(positions: Tensor, flipped: Tensor) -> Tensor:
    """Positions in a row ``(n, L)`` from the left, or from the right where it is ``flipped``, ``(n,)``."""
    return torch.where(flipped[:, None], positions.flip(0), positions)


def _middle(height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest area in the middle with a ratio that is allowed."""
    low, high = CROP_RATIO
    columns = min(width, round(height * high))
    rows = min(height, round(width / low))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
