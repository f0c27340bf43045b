"""Where a model looked: heat over an image."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.plots.style import GREY, fit_texts, new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE, _GAP, _TOP = 3.0, 0.15, 0.5  # the longer side of an image, between the two and above them, in inches
_PIXELS = 480  # longer side that is drawn
_PALE = 0.6  # fraction of white over what the model did not see
_COLD, _HOT = 0.1, 0.7  # fractions of the heat's colour over the image


def explanation_figure(
    image: Image.Image, heat: NDArray[np.float32], box: tuple[float, float, float, float], title: str, note: str
) -> "Figure":
    """An image, beside itself under the heat.

    Args:
        image: the whole image.
        heat: ``(H, W)`` between 0 and 1.
        box: left, top, right and bottom of the heat, in pixels of the image; what lies outside is pale.
        title: over both.
        note: below the title, in small letters.
    """
    shown, heated = _heated(image, heat, box, _PIXELS)
    height, width = shown.shape[:2]
    inch = _SIDE / _PIXELS
    size = (2 * width * inch + _GAP, height * inch + _TOP)
    figure = new_figure(figsize=size, layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))  # in inches, from the top
    axes.axis("off")
    for pixels, x in ((shown, 0.0), (heated, width * inch + _GAP)):
        axes.imshow(pixels, extent=(x, x + width * inch, size[1], _TOP))
    axes.text(size[0] / 2, 0.0, wrapped(title, 60, lines=1), ha="center", va="top", fontsize=11)
    axes.text(size[0] / 2, 0.24, wrapped(note, 60, lines=1), ha="center", va="top", fontsize=8, color=GREY)
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="equal")
    fit_texts(figure, axes.texts, size[0])
    return figure


def heat_over(
    image: Image.Image, heat: NDArray[np.float32], box: tuple[float, float, float, float], longest: int
) -> Image.Image:
    """The image itself under the heat, at most ``longest`` pixels wide and high, and enlarged where it is small; see
    `explanation_figure`."""
    _, heated = _heated(image, heat, box, min(max(*image.size, _PIXELS), longest))
    return Image.fromarray((255 * heated).round().astype(np.uint8))


def _heated(
    image: Image.Image, heat: NDArray[np.float32], box: tuple[float, float, float, float], longer: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The image, pale outside the box, without and with the heat: ``(H, W, 3)`` from 0 to 1, the longer side ``longer``
    pixels."""
    from matplotlib import colormaps

    scale = longer / max(image.size)
    width, height = (max(round(scale * side), 1) for side in image.size)
    left, top = int(scale * box[0]), int(scale * box[1])
    right, bottom = max(round(scale * box[2]), left + 1), max(round(scale * box[3]), top + 1)
    enlarged = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    plain = np.asarray(image.convert("RGB").resize((width, height), enlarged)) / 255
    shown = plain + _PALE * (1 - plain)
    inside = slice(top, bottom), slice(left, right)
    shown[inside] = plain[inside]
    heated = shown.copy()
    values = np.asarray(Image.fromarray(heat).resize((right - left, bottom - top), Image.Resampling.BILINEAR))[
        ..., None
    ]
    weight = _COLD + (_HOT - _COLD) * values
    heated[inside] += weight * (colormaps["inferno"](values[..., 0])[..., :3] - heated[inside])
    return shown, heated
