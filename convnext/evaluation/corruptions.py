"""The fifteen corruptions of ImageNet-C (Hendrycks and Dietterich 2019), each at five severities.

They are applied to the square that the model sees, at its resolution, and depend on nothing but seed, image, corruption
and severity. Strengths are the paper's; lengths are its pixels at 224 px, scaled to the image, where that leaves enough
to be seen. They are written anew from the paper, so that numbers are comparable with each other, and not with those on
its files: `frost` is made of noise in place of photographs, `glass_blur` takes each pixel from a near one, and
`elastic_transform` has no affine component.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import Picture, Raw
from convnext.data.interpolation import Pixels
from convnext.data.sources import ImageSource
from convnext.errors import SettingsError, did_you_mean

Values: TypeAlias = NDArray[np.float64]  # (H, W, C), from 0 to 1
_Corruption: TypeAlias = Callable[[Values, int, np.random.Generator], Values]

SEVERITIES = range(1, 6)
_REFERENCE = 224  # pixels, for which the paper states lengths


def _gaussian_noise(image: Values, severity: int, draw: np.random.Generator) -> Values:
    return image + draw.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[severity], image.shape)


def _shot_noise(image: Values, severity: int, draw: np.random.Generator) -> Values:
    photons = (60, 25, 12, 5, 3)[severity]
    return draw.poisson(image * photons) / photons


def _impulse_noise(image: Values, severity: int, draw: np.random.Generator) -> Values:
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity]
    return np.where(draw.random(image.shape) < amount, draw.integers(0, 2, image.shape), image)


def _defocus_blur(image: Values, severity: int, draw: np.random.Generator) -> Values:  # noqa: ARG001
    radius = (3, 4, 6, 8, 10)[severity] * _scale(image)
    reach = int(np.ceil(radius)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _filtered(image, np.clip(radius + 1 - np.hypot(y, x), 0, 1))  # a disk with a smooth edge


def _glass_blur(image: Values, severity: int, draw: np.random.Generator) -> Values:
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity]
    scale = _scale(image)
    blurred = _blurred(image, sigma * scale)
    height, width = image.shape[:2]
    rows, columns = np.indices((height, width))
    for _ in range(times):
        moves = np.rint(max(reach * scale, 1) * draw.uniform(-1, 1, (2, height, width))).astype(int)
        y, x = np.clip(rows + moves[0], 0, height - 1), np.clip(columns + moves[1], 0, width - 1)
        blurred = blurred[y, x]
    return _blurred(blurred, sigma * scale)


def _motion_blur(image: Values, severity: int, draw: np.random.Generator) -> Values:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity]
    return _moved(image, radius, sigma, draw.uniform(-45, 45))


def _zoom_blur(image: Values, severity: int, draw: np.random.Generator) -> Values:  # noqa: ARG001
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity]
    zoomed = [image, *(_zoomed(image, factor) for factor in np.arange(1, most, step))]
    changed: Values = np.mean(zoomed, axis=0)
    return changed


def _snow(image: Values, severity: int, draw: np.random.Generator) -> Values:
    mean, deviation, zoom, least, radius, sigma, weight = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity]
    flakes = _zoomed(draw.normal(mean, deviation, (*image.shape[:2], 1)), max(1.0, zoom * _scale(image)))
    flakes = _moved(np.where(flakes < least, 0, flakes).clip(0, 1), radius, sigma, draw.uniform(-135, -45))
    grey = image.mean(2, keepdims=True)
    changed: Values = weight * image + (1 - weight) * np.maximum(image, grey * 1.5 + 0.5) + flakes + flakes[::-1, ::-1]
    return changed


def _frost(image: Values, severity: int, draw: np.random.Generator) -> Values:
    weight, amount = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity]
    ridges = 1 - 2 * np.abs(_fractal(image, 1.4, draw) - 0.5)  # bright along lines, as crystals are
    tint = np.array([0.75, 0.85, 0.95]) if image.shape[2] == 3 else 0.85
    return weight * image + amount * ridges**2 * tint


def _fog(image: Values, severity: int, draw: np.random.Generator) -> Values:
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity]
    brightest = image.max()
    changed: Values = (image + amount * _fractal(image, decay, draw)) * brightest / (brightest + amount)
    return changed


def _brightness(image: Values, severity: int, draw: np.random.Generator) -> Values:  # noqa: ARG001
    value = image.max(2, keepdims=True)  # of hue, saturation and value; black has no hue
    brighter = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity], 1)
    changed: Values = np.where(value > 0, image / np.where(value > 0, value, 1), 1) * brighter
    return changed


def _contrast(image: Values, severity: int, draw: np.random.Generator) -> Values:  # noqa: ARG001
    mean = image.mean((0, 1))
    changed: Values = (image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity] + mean
    return changed


def _elastic_transform(image: Values, severity: int, draw: np.random.Generator) -> Values:
    from scipy.ndimage import gaussian_filter, map_coordinates

    length = min(image.shape[:2])
    moves = [gaussian_filter(draw.uniform(-1, 1, image.shape[:2]), max(0.01 * length, 0.5)) for _ in range(2)]
    amount = (0.0046, 0.0059, 0.0078, 0.0092, 0.011)[severity] * length  # pixels
    rows, columns = np.indices(image.shape[:2])
    where = [rows + amount * moves[0] / moves[0].std(), columns + amount * moves[1] / moves[1].std()]
    return np.stack([map_coordinates(channel, where, order=1, mode="reflect") for channel in image.T.swapaxes(1, 2)], 2)


def _pixelate(image: Values, severity: int, draw: np.random.Generator) -> Values:  # noqa: ARG001
    fraction = (0.6, 0.5, 0.4, 0.3, 0.25)[severity]
    picture = _picture(image)
    small = picture.resize([max(1, int(length * fraction)) for length in picture.size], Image.Resampling.BOX)
    return _values(np.asarray(small.resize(picture.size, Image.Resampling.NEAREST)))


def _jpeg_compression(image: Values, severity: int, draw: np.random.Generator) -> Values:  # noqa: ARG001
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity])
    return _values(np.asarray(Image.open(file)))


_CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
CORRUPTIONS = tuple(_CORRUPTIONS)


def corrupt(pixels: Pixels, name: str, severity: int, *key: int) -> Pixels:
    """An image, corrupted.

    Args:
        pixels: ``(H, W, C)`` uint8, of 1 or 3 channels.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        key: numbers that what is drawn depends on, such as a seed and the image's index.

    Returns:
        Pixels of the same shape.

    Raises:
        SettingsError: no such corruption or severity.
    """
    if name not in _CORRUPTIONS:
        raise SettingsError(f"no corruption is called {name!r}: {did_you_mean(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise SettingsError(f"severity: must be 1 to 5, got {severity}")
    draw = np.random.default_rng((CORRUPTIONS.index(name), severity, *key))
    changed = _CORRUPTIONS[name](_values(pixels), severity - 1, draw)
    corrupted: Pixels = np.rint(255 * changed.clip(0, 1)).astype(np.uint8)
    return corrupted


@dataclass(frozen=True)
class CorruptedSource(ImageSource):
    """The images of a source as a model sees them, square, corrupted.

    Attributes:
        images: the source.
        name: of the corruption.
        severity: of it.
        image_size: width and height of the images in pixels.
        center_crop: as of `convnext.weights.model_info.ModelInfo`.
        seed: of what is drawn.
    """

    images: ImageSource
    name: str
    severity: int
    image_size: int
    center_crop: float
    seed: int = 0

    def __post_init__(self) -> None:
        vars(self).update(targets=self.images.targets, channels=self.images.channels)

    def raw(self, index: int) -> Raw:
        """The corrupted pixels."""
        pixels = self.images.picture(index).center(self.image_size, self.center_crop)
        return corrupt(pixels, self.name, self.severity, self.seed, index)

    def picture(self, index: int) -> Picture:
        """The corrupted image."""
        return Picture(self.raw(index), self.channels, self.image_name(index))

    def image_name(self, index: int) -> str:
        """The image's."""
        return self.images.image_name(index)

    def fingerprint(self) -> str:
        """The source's, with what is done to it."""
        return f"{self.images.fingerprint()} {self.name} {self.severity} {self.seed}"


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The corruptions of these names, or all where there are none; SettingsError where one is not known."""
    for name in names:
        if name not in CORRUPTIONS:
            raise SettingsError(f"no corruption is called {name!r}: {did_you_mean(name, CORRUPTIONS)}")
    return tuple(names) or CORRUPTIONS


def _values(pixels: Pixels) -> Values:
    return (pixels[..., None] if pixels.ndim == 2 else pixels) / 255


def _picture(image: Values) -> Image.Image:
    pixels = np.rint(255 * image).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _scale(image: Values) -> float:
    return float(min(image.shape[:2]) / _REFERENCE)


def _blurred(image: Values, sigma: float) -> Values:
    from scipy.ndimage import gaussian_filter

    blurred: Values = gaussian_filter(image, (sigma, sigma, 0))
    return blurred


def _filtered(image: Values, kernel: Values) -> Values:
    """The image, mirrored beyond its edges, under a kernel ``(2 R + 1, 2 R + 1)``, whose sum becomes 1."""
    from scipy.signal import fftconvolve

    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    filtered: Values = fftconvolve(padded, (kernel / kernel.sum())[..., None], mode="valid", axes=(0, 1))
    return filtered


def _moved(image: Values, radius: float, sigma: float, angle: float) -> Values:
    """Blurred along a line, from each pixel on; ``radius`` and ``sigma`` are lengths at 224 px, ``angle`` is in
    degrees."""
    length, sigma = 2 * radius * _scale(image), max(sigma * _scale(image), 0.5)
    steps = np.linspace(0, length, int(np.ceil(4 * length)) + 1)
    reach = int(np.ceil(length))
    y = np.rint(steps * np.sin(np.deg2rad(angle))).astype(int) + reach
    x = np.rint(steps * np.cos(np.deg2rad(angle))).astype(int) + reach
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    np.add.at(kernel, (y, x), np.exp(-(steps**2) / (2 * sigma**2)))
    return _filtered(image, kernel)


def _zoomed(image: Values, factor: float) -> Values:
    """The middle of the image, enlarged to its size."""
    from scipy.ndimage import affine_transform

    middle = (np.array(image.shape) - 1) / 2
    matrix = np.array([1 / factor, 1 / factor, 1])
    zoomed: Values = affine_transform(image, matrix, offset=middle * (1 - matrix), order=1, mode="nearest")
    return zoomed


def _fractal(image: Values, decay: float, draw: np.random.Generator) -> Values:
    """Clouds ``(H, W, 1)`` from 0 to 1: noise of ever finer cells, each ``decay`` times weaker than the one before."""
    height, width = image.shape[:2]
    clouds = np.zeros((height, width))
    for octave in range(1, max(height, width).bit_length()):
        cells = Image.fromarray(draw.uniform(-1, 1, (2**octave + 1, 2**octave + 1)).astype(np.float32))
        clouds += np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC)) / decay**octave
    clouds -= clouds.min()
    scaled: Values = (clouds / clouds.max())[..., None]
    return scaled
