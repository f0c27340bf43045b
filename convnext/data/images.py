"""From a file's bytes to the upright 8-bit RGB or grey pixels that a person sees.

Training, evaluation, prediction, the cache and the audit all read images by `Picture`.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from simplejpeg import decode_jpeg
from torch import Tensor
from torch.nn.functional import interpolate

from convnext.errors import DataError

Raw: TypeAlias = bytes | NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class UnreadableImageError(DataError):
    """A file that is no image, or a damaged one."""


class Picture:
    """An image that decodes no more than what is asked of it.

    It is the first frame, turned upright by its EXIF orientation, on white where it is transparent, in 8 bits.

    Args:
        raw: an encoded file's bytes, ``(H, W)`` or ``(H, W, C)`` uint8 pixels, or a Pillow image of any mode, whose
            pixels are taken as they are.
        channels: 3 or 1: those of the pixels that it gives.
        name: what to call it in an error.

    Raises:
        UnreadableImageError: not an image, truncated, damaged or too large; the message has the name.
    """

    def __init__(self, raw: Raw | Image.Image, channels: int, name: str = "image") -> None:
        self.channels, self.name = channels, name
        self._jpeg: tuple[bytes, tuple[int, int]] | None = None  # with its width and height
        self._pixels: Tensor | None = None
        if isinstance(raw, bytes):
            self._open(raw)
        elif isinstance(raw, Image.Image):
            with _readable(name):
                self._pixels = _tensor(to_mode(raw, channels))
        else:
            # Copied where the memory is read-only, which torch would warn of; a batch is copied later anyway.
            pixels = torch.from_numpy(raw if raw.flags.writeable else raw.copy())
            self._pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    @classmethod
    def open(cls, file: str | Path | BinaryIO, channels: int) -> "Picture":
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
        return cls(raw, channels, name)

    def _open(self, raw: bytes) -> None:
        with _readable(self.name), Image.open(io.BytesIO(raw)) as image:
            _drop_xmp(image)
            jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
            if jpeg and image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                self._jpeg = raw, image.size
            else:
                self._pixels = _tensor(_upright(image, self.channels))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        if self._jpeg is not None:
            return self._jpeg[1]
        assert self._pixels is not None
        return self._pixels.shape[2], self._pixels.shape[1]

    def decode(self) -> Image.Image:
        """All of it, in mode ``RGB`` or ``L``.

        Raises:
            UnreadableImageError: truncated or damaged.
        """
        pixels = self._decoded(1)
        return Image.fromarray(pixels[0].numpy() if self.channels == 1 else pixels.permute(1, 2, 0).numpy())

    def resized(self, box: Box, width: int, height: int, margin: int = 1) -> Tensor:
        """The pixels inside ``box``, resized (bicubic, antialiased) to ``(C, height, width)`` uint8.

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
        pixels = self._decoded(factor)[:, top:bottom, left:right]
        if pixels.shape[1:] == (height, width):
            return pixels
        # torch's kernel is fastest from HWC to HWC, the order in which images are decoded and batched.
        pixels = pixels[None].contiguous(memory_format=torch.channels_last)
        # What transforms.v2 comes to for uint8 on CPU, without the way there.
        return interpolate(pixels, size, scales, mode="bicubic", antialias=True)[0]

    def _decoded(self, factor: int) -> Tensor:
        if self._pixels is not None:
            return self._pixels
        assert self._jpeg is not None
        raw, size = self._jpeg
        width, height = (-(-length // factor) for length in size)
        colours = "RGB" if self.channels == 3 else "GRAY"
        try:
            pixels = decode_jpeg(raw, colours, min_height=height, min_width=width, min_factor=factor)
        except ValueError:  # Pillow forgives what a person would not see, and says what is wrong with the rest
            with _readable(self.name), Image.open(io.BytesIO(raw)) as image:
                _drop_xmp(image)
                whole = _upright(image, self.channels)
                return _tensor(whole.resize((width, height), Image.Resampling.BOX) if factor > 1 else whole)
        return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Makes one line of whatever Pillow raises for an image that it cannot read.

    Raises:
        UnreadableImageError: the line, which begins with ``name``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata does not matter; damaged pixels raise
            yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = "no image format that Pillow knows" if "cannot identify" in str(error) else str(error)
        raise UnreadableImageError(f"{name}: unreadable image ({reason})") from error


def _tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _drop_xmp(image: Image.Image) -> None:
    """Pillow turns an image by an orientation that stands in XMP alone; browsers and other decoders do not."""
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)


def _upright(image: Image.Image, channels: int) -> Image.Image:
    """The whole image by Pillow, turned by its EXIF orientation, in mode ``RGB`` or ``L``."""
    image.load()
    _drop_xmp(image)  # again: a PNG may have it after the pixels
    return to_mode(ImageOps.exif_transpose(image), channels)


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert any Pillow mode to ``RGB`` (3 channels) or ``L`` (1 channel)."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    elif image.mode in ("LAB", "HSV", "YCbCr"):
        image = image.convert("RGB")
    return image.convert(mode)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey, which Pillow would clip at 255, scaled to mode ``L``."""
    values = np.asarray(image).astype(np.float64)
    largest = values.max(initial=0)
    if image.mode == "F":
        scale = 255.0 if largest <= 1 else 1.0
    else:
        scale = 255 / 65535 if image.mode.startswith("I;16") or largest > 255 else 1.0
    return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))
