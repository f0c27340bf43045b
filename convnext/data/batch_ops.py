"""The operations of RandAugment and its kind for a batch of 8-bit images, in whole numbers: the same bits everywhere.

torchvision's take one strength for a whole batch. These take one for each image, and do what Pillow does
(`PIL.ImageOps`, `PIL.ImageEnhance`, bilinear affine transforms) to a grey level: its factors and positions are
floating-point numbers, and here multiples of 2**-20 and 2**-17. A pixel on the very edge of what an affine transform
sees may count as outside there and not here, or the other way round.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from convnext.kernels.views import affine, can_view

_FACTOR_BITS = 20  # of a factor behind the point
FACTOR = 1 << _FACTOR_BITS  # 1, as the strength of an operation that blends
_POSITION_BITS = 17  # of a position behind the point
_WEIGHT_BITS = 11  # of an interpolation's weights
_TWENTY_SIXTH = 2**18 // 26 + 1, 18  # n // 26 is n times the first, shifted by the second, for all n below 6,656

Op = Callable[[Tensor, Tensor], Tensor]


def brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blended with black. This and the next take ``(n, H, W, C)`` uint8, and each image's strength, ``(n,)`` int32."""
    return _blend(torch.zeros((), dtype=torch.int32, device=pixels.device), pixels, factors)


def contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blended with the mean grey."""
    grey = _grey(pixels).flatten(1)
    count = grey.shape[1]
    mean = (2 * grey.sum(1) + count) // (2 * count)
    return _blend(mean.int()[:, None, None, None], pixels, factors)


def color(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blended with its greys."""
    return _blend(_grey(pixels)[..., None], pixels, factors)


def sharpness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blended with a smoother image: of 3x3 pixels the middle one weighs 5 and the others 1; the border stays."""
    values = pixels.int()
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * values[:, 1:-1, 1:-1]
    smooth = values.clone()
    multiplier, shift = _TWENTY_SIXTH
    smooth[:, 1:-1, 1:-1] = ((2 * total + 13) * multiplier) >> shift
    return _blend(smooth, pixels, factors)


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """The highest bits of each value."""
    masks = (256 - (1 << (8 - bits))).to(torch.uint8)
    return pixels & masks[:, None, None, None]


def solarize(pixels: Tensor, thresholds: Tensor) -> Tensor:
    """Values from the threshold on inverted."""
    # 256 is none of a byte's values: no pixel is above.
    above = (pixels >= thresholds.clamp(max=255)[:, None, None, None]) & (thresholds < 256)[:, None, None, None]
    return pixels ^ (above * torch.full((), 255, dtype=torch.uint8, device=pixels.device))


def invert(pixels: Tensor, _: Tensor) -> Tensor:
    """All values inverted."""
    return ~pixels


def autocontrast(pixels: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to all values from 0 to 255."""
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    one_value = low == high  # such a channel stays as it is
    low, high = low.masked_fill(one_value, 0), high.masked_fill(one_value, 255)
    # Exact: the quotient of two such whole numbers is no nearer to another one than float32 can tell.
    return ((pixels - low).float() * 255).div_((high - low).float()).to(torch.uint8)


def equalize(pixels: Tensor, _: Tensor) -> Tensor:
    """Each channel's values spread so that all are about equally frequent."""
    spread: Tensor = functional.equalize_image(pixels.permute(0, 3, 1, 2))
    return spread.permute(0, 2, 3, 1).contiguous()


BLENDS: dict[str, Op] = {"Brightness": brightness, "Contrast": contrast, "Color": color, "Sharpness": sharpness}
OPS: dict[str, Op] = BLENDS | {
    "Posterize": posterize,
    "Solarize": solarize,
    "Invert": invert,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
}


def shear_x(strength: float, _: int) -> list[float]:
    """Where in the image a pixel comes from: two rows of an affine matrix, for a strength and an image's size."""
    return [1, strength, 0, 0, 1, 0]


def shear_y(strength: float, _: int) -> list[float]:
    """As `shear_x`."""
    return [1, 0, 0, strength, 1, 0]


def translate_x(strength: float, _: int) -> list[float]:
    """By whole pixels."""
    return [1, 0, -int(strength), 0, 1, 0]


def translate_y(strength: float, _: int) -> list[float]:
    """By whole pixels."""
    return [1, 0, 0, 0, 1, -int(strength)]


def rotate(strength: float, size: int) -> list[float]:
    """By degrees against the clock, around the middle."""
    cos, sin = (round(function(math.radians(strength)), 15) for function in (math.cos, math.sin))
    middle = size / 2
    return [cos, -sin, middle - cos * middle + sin * middle, sin, cos, middle - sin * middle - cos * middle]


MATRICES: dict[str, Callable[[float, int], list[float]]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}
_ACROSS, _DOWN = ("ShearX", "Rotate"), ("ShearY", "Rotate")  # may see what lies between two columns, or two rows


class Affine:
    """An affine transform of square images, bilinear.

    Args:
        op: one of `MATRICES`.
        strengths: that it may have.
        size: of the images.
        fill: colour of what is outside, a value from 0 to 255 a channel.
        device: where they are.
    """

    def __init__(
        self, op: str, strengths: Sequence[float], size: int, fill: Sequence[int], device: torch.device
    ) -> None:
        # Of x and y by the middles of pixels, which are counted in halves, and what is added.
        units = 2.0**_POSITION_BITS * np.array([0.5, 0.5, 1.0])
        matrices = [np.rint(np.reshape(MATRICES[op](strength, size), (2, 3)) * units) for strength in strengths]
        self._matrices = torch.from_numpy(np.array(matrices)).int().to(device)
        self._middles = 2 * torch.arange(size, dtype=torch.int32, device=device) + 1
        self._fill = torch.tensor(fill, dtype=torch.int32, device=device)
        self._size = size
        self._across, self._down = op in _ACROSS, op in _DOWN

    def __call__(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        """Images ``(n, size, size, C)`` uint8, each by the strength with that number, ``(n,)``."""
        if can_view(pixels):
            return affine(pixels, self._matrices[numbers], self._fill, self._across, self._down)
        return self.by_operations(pixels, numbers)

    def by_operations(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        """The same by PyTorch's operations, on any device."""
        by_x, by_y, offset = self._matrices[numbers].unbind(2)
        along_x = by_x[:, :, None] * self._middles
        along_y = by_y[:, :, None] * self._middles + offset[:, :, None]
        x, y = (along_x[:, :, None] + along_y[..., None]).unbind(1)  # (n, size, size) each: where a pixel comes from
        end = self._size << _POSITION_BITS
        inside = (x >= 0) & (x < end) & (y >= 0) & (y < end)
        points = pixels.reshape(-1, pixels.shape[-1])
        starts = torch.arange(len(pixels), dtype=torch.int32, device=pixels.device)[:, None, None] * self._size**2

        def along_row(start: Tensor) -> Tensor:
            return self._between(
                x, self._across, lambda column: points.index_select(0, (start + column).flatten()).view_as(pixels).int()
            )

        made = self._between(y, self._down, lambda row: along_row(row * self._size + starts))
        made >>= _WEIGHT_BITS * (self._across + self._down)
        # Outside is the fill; multiplying is faster than `torch.where`.
        return (self._fill + (made - self._fill) * inside[..., None]).to(torch.uint8)

    def _between(self, position: Tensor, interpolated: bool, values_at: Callable[[Tensor], Tensor]) -> Tensor:
        """Values at positions ``(n, size, size)``; where they are interpolated, times 2 to the `_WEIGHT_BITS`."""
        from_middle = position - (1 << (_POSITION_BITS - 1))
        first = from_middle >> _POSITION_BITS
        before = values_at(first.clamp(0, self._size - 1))
        if not interpolated:
            return before
        weight = (from_middle >> (_POSITION_BITS - _WEIGHT_BITS)) & (2**_WEIGHT_BITS - 1)
        behind = values_at((first + 1).clamp_(0, self._size - 1))
        return behind.sub_(before).mul_(weight[..., None]).add_(before << _WEIGHT_BITS)


def _grey(pixels: Tensor) -> Tensor:
    """``(n, H, W)`` int32, the luma of ITU-R 601."""
    values = pixels.int()
    if pixels.shape[-1] == 1:
        return values[..., 0]
    red, green, blue = values.unbind(-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16


def _blend(other: Tensor, pixels: Tensor, factors: Tensor) -> Tensor:
    """``factors`` of the image and the rest of the ``other``, int32; factors above 1 go away from the other."""
    blended = other + (((pixels - other) * factors[:, None, None, None]) >> _FACTOR_BITS)
    return blended.clamp_(0, 255).to(torch.uint8)
