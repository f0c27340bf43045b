"""From a file's bytes to the upright 8-bit RGB or grey pixels that a person sees.

Training, evaluation, prediction, the cache and the audit all read images by `Picture`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from simplejpeg import decode_jpeg

from convnext.config import MAX_PIXELS
from convnext.data.formats import bound_pixels, load_upright, open_image, silent, turn, without_metadata
from convnext.data.interpolation import Pixels, interpolate
from convnext.errors import DataError, reason

Raw: TypeAlias = bytes | Pixels
Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom in pixels

BAND = 2**22  # pixels that are converted at once
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_LONG = 32  # times as long as wide


class UnreadableImageError(DataError):
    """A file that is no image, or a damaged one."""


class Scale(NamedTuple):
    """How the values of a grey image of more than 8 bits become grey levels: 0 is black."""

    white: float  # the value that is
    largest: float  # value that there is
    clipped: float  # fraction of the pixels that lie beyond black and white


class Picture:
    """An image that decodes no more than what is asked of it.

    It is the first frame, turned upright by its EXIF orientation, on white where it is transparent, in 8 bits.

    Args:
        raw: an encoded file's bytes, ``(H, W)`` or ``(H, W, C)`` uint8 pixels, or a Pillow image of any mode, whose
            pixels are taken as they are.
        channels: 3 or 1: those of the pixels that it gives.
        name: what to call it in an error.
        max_pixels: of a file, as in `convnext.config.DataSettings`.
        max_value: as there.

    Attributes:
        mode: Pillow's name for how the pixels are stored.
        scale: of grey of more than 8 bits; None for other images.

    Raises:
        UnreadableImageError: not an image, truncated, damaged or too large, or values of which none is known to be
            white; the message has the name.
    """

    def __init__(
        self,
        raw: Raw | Image.Image,
        channels: int,
        name: str = "image",
        *,
        max_pixels: int = MAX_PIXELS,
        max_value: float | None = None,
    ) -> None:
        self.channels, self.name = channels, name
        self.scale: Scale | None = None
        self._max_pixels, self._max_value = max_pixels, max_value
        self._jpeg: tuple[bytes, tuple[int, int]] | None = None  # with its width and height
        self._pixels: Pixels | None = None  # (H, W, channels)
        if isinstance(raw, bytes):
            with _readable(name):
                try:
                    self._open(raw)
                except Exception as error:
                    bare, exif = without_metadata(raw)
                    try:
                        self._open(bare, exif)
                    except Exception:
                        raise error from None
        elif isinstance(raw, Image.Image):
            self.mode = _mode(raw)
            with _readable(name):
                self._pixels = self._converted(raw, _white(raw))
        else:
            self.mode = "L" if raw.ndim == 2 or raw.shape[2] == 1 else "RGB"
            # Copied where the memory is read-only, which torch would warn of; a batch is copied later anyway.
            pixels = raw if raw.flags.writeable else raw.copy()
            self._pixels = pixels[..., None] if pixels.ndim == 2 else pixels

    @classmethod
    def open(
        cls,
        file: str | Path | BinaryIO,
        channels: int,
        *,
        max_pixels: int = MAX_PIXELS,
        max_value: float | None = None,
    ) -> "Picture":
        """The image of a file or of a binary stream, which is called standard input in an error.

        Raises:
            UnreadableImageError: it cannot be read, or is no image; the message names the file.
        """
        name = str(file) if isinstance(file, str | Path) else "standard input"
        try:
            if isinstance(file, str | Path):
                raw = Path(file).read_bytes()
            else:
                if file.seekable():
                    file.seek(0)  # a user who has just written it need not
                raw = file.read()
        except OSError as error:
            raise UnreadableImageError(f"{name}: unreadable image ({error.strerror or error})") from error
        return cls(raw, channels, name, max_pixels=max_pixels, max_value=max_value)

    def _open(self, raw: bytes, exif: bytes = b"") -> None:
        image = open_image(raw, exif)
        size = image.size
        bound_pixels(image, raw, self._max_pixels)
        self.mode = _mode(image)
        whole_jpeg = image.format == "JPEG" and image.size == size and image.mode in ("RGB", "L")
        if whole_jpeg and turn(image) is None:
            self._jpeg = raw, size
        else:
            self._pixels = self._converted(load_upright(image), _white(image))

    def _converted(self, image: Image.Image, white: float | None = None) -> Pixels:
        """The pixels of any Pillow image ``(H, W, channels)``; ``white`` is its own, in grey of more than 8 bits."""
        if image.mode.startswith(("I", "F")):
            levels, self.scale = _grey_levels(image, white, self._max_value)
            image = Image.fromarray(levels)
        width, height = image.size
        pixels = np.empty((height, width) if self.channels == 1 else (height, width, self.channels), np.uint8)
        rows = max(BAND // width, 1)
        for top in range(0, height, rows):  # bounds the memory for what lies between
            bottom = min(top + rows, height)
            band = image if bottom - top == height else image.crop((0, top, width, bottom))
            pixels[top:bottom] = np.asarray(_to_mode(band, self.channels))
        return pixels.reshape(height, width, self.channels)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        if self._jpeg is not None:
            return self._jpeg[1]
        assert self._pixels is not None
        return self._pixels.shape[1], self._pixels.shape[0]

    def decode(self) -> Image.Image:
        """All of it, in mode ``RGB`` or ``L``.

        Raises:
            UnreadableImageError: truncated or damaged.
        """
        pixels = self._decoded(1)
        return Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)

    def center(self, image_size: int, center_crop: float = 1.0, margin: int = 2) -> Pixels:
        """The square in the middle ``(image_size, image_size, channels)``, after the shorter edge was resized to
        ``image_size / center_crop`` pixels.

        Args:
            image_size: width and height of the result in pixels.
            center_crop: width of the square as a fraction of the shorter edge.
            margin: as of `resized`.

        Raises:
            UnreadableImageError: truncated or damaged.
        """
        width, height = self.size
        left, top = 0, 0
        if max(width, height) > _LONG * min(width, height):
            # The middle square alone: resized as a whole, a line of pixels would take gigabytes.
            left, top = max(width - height, 0) // 2, max(height - width, 0) // 2
            width = height = min(width, height)
        box = left, top, left + width, top + height
        if width == height == image_size and center_crop == 1:
            return self.resized(box, width, height)
        shorter = round(image_size / center_crop)
        size = [shorter * length // min(width, height) for length in (width, height)]
        pixels = self.resized(box, size[0], size[1], margin)
        left, top = (round((length - image_size) / 2) for length in size)
        return pixels[top : top + image_size, left : left + image_size]

    def resized(self, box: Box, width: int, height: int, margin: int = 1) -> Pixels:
        """The pixels inside ``box``, resized (bicubic, antialiased) to ``(height, width, channels)``.

        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which the format allows for a fraction of the work.

        Args:
            box: left, top, right and bottom in pixels of the upright image.
            width: of the result in pixels.
            height: of the result in pixels.
            margin: how many times as wide and high as the result the reduced box must be. At 1, for random crops, the
                box's edges are rounded to whole pixels of the reduced image. From 2 on its width and height are
                exact, and a box that begins at (0, 0) comes out as from a whole decode within half a grey level, in
                the mean over photographs.

        Raises:
            UnreadableImageError: truncated or damaged.
        """
        box_width, box_height = box[2] - box[0], box[3] - box[1]
        factor = 1
        if self._jpeg is not None:
            fits = (f for f in (8, 4, 2) if box_width >= margin * f * width and box_height >= margin * f * height)
            factor = next(fits, 1)
        left, top, right, bottom = (round(edge / factor) for edge in box)
        size: list[int] | None = [height, width]
        scales: list[float] | None = None
        if factor > 1 and margin > 1:
            left, top, right, bottom = box[0] // factor, box[1] // factor, -(-box[2] // factor), -(-box[3] // factor)
            # A size would squeeze in all of the last pixels, which lie partly outside the box; what comes of a scale
            # is rounded down to whole pixels, of which a rounding error must not take one.
            above_1 = 1 + 1e-12
            size, scales = None, [above_1 * factor * height / box_height, above_1 * factor * width / box_width]
        pixels = self._decoded(factor)[top:bottom, left:right]
        return pixels if pixels.shape[:2] == (height, width) else interpolate(pixels, size, scales)

    def _decoded(self, factor: int) -> Pixels:
        if self._pixels is not None:
            return self._pixels
        assert self._jpeg is not None
        raw, size = self._jpeg
        width, height = (-(-length // factor) for length in size)
        colours = "RGB" if self.channels == 3 else "GRAY"
        try:
            pixels: Pixels = decode_jpeg(raw, colours, min_height=height, min_width=width, min_factor=factor)
        except ValueError:  # Pillow forgives what a person would not see, and says what is wrong with the rest
            with _readable(self.name):
                whole = load_upright(open_image(raw))
                return self._converted(whole.resize((width, height), Image.Resampling.BOX) if factor > 1 else whole)
        return pixels


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Makes one line of whatever Pillow raises for an image that it cannot read.

    Raises:
        UnreadableImageError: the line, which begins with ``name``.
    """
    try:
        with silent:
            yield
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImageError(f"{name}: unreadable image ({reason(error)})") from error


def _mode(image: Image.Image) -> str:
    return image.mode + ("+transparency" if "transparency" in image.info else "")


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert any Pillow mode of 8 bits to ``RGB`` (3 channels) or ``L`` (1 channel)."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode in ("LAB", "HSV", "YCbCr"):
        image = image.convert("RGB")
    return image.convert(mode)


def _white(image: Image.Image) -> float | None:
    """The value that is white in a grey image of more than 8 bits by its type; None where that does not say."""
    if image.mode == "F":
        return 1.0
    if image.mode.startswith("I;16"):
        bits: int = image.tag_v2[_BITS_PER_SAMPLE][0] if isinstance(image, TiffImageFile) else 16  # 12, too
        return 2.0**bits - 1
    # Pillow holds 16 bits as 32 in these formats.
    return 65535.0 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _grey_levels(
    image: Image.Image, own_white: float | None, max_value: float | None
) -> tuple[NDArray[np.uint8], Scale]:
    """``(H, W)`` levels of 16-bit, 32-bit or float grey, which Pillow would clip at 255; white is what the data set
    says, else the type of file, and never the image's own values, or neighbours would come out differently.

    Raises:
        ValueError: values of which none is known to be white, or that lie beyond those that are known to be.
    """
    values = np.asarray(image)
    smallest, largest = float(values.min()), float(values.max())
    if not math.isfinite(smallest + largest):
        raise ValueError("values that are not finite numbers (NaN or infinite): replace them")
    white = max_value or own_white
    level = 255 / white if white else 0.0
    # Half a grey level beyond black or white is a rounding error.
    if white is None or (max_value is None and not -0.5 <= level * smallest <= level * largest < 255.5):
        rule = "float grey has white at 1" if image.mode == "F" else "32-bit grey has white nowhere in particular"
        raise ValueError(
            f"{rule}, and these values go from {smallest:,.6g} to {largest:,.6g}: say what is white in all images by "
            f"--data.max-value"
        )
    levels = np.empty(values.shape, np.uint8)
    rows = max(BAND // values.shape[1], 1)
    for top in range(0, len(values), rows):
        band = values[top : top + rows].astype(np.float64)
        levels[top : top + rows] = np.clip(band * level + 0.5, 0, 255)
    outside = np.count_nonzero(values > white) + np.count_nonzero(values < 0)
    return levels, Scale(white, largest, outside / values.size)
