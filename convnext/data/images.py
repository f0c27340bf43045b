"""Any image that Pillow opens, as the 8-bit RGB or grey picture that a person sees."""

import io
import warnings
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
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

    Args:
        raw: an encoded file's bytes, ``(H, W)`` or ``(H, W, C)`` uint8 pixels, or a Pillow image (``RGB`` or ``L``).
        channels: 3 or 1: those of the pixels that it gives.
        name: what to call it in an error.

    Raises:
        UnreadableImageError: bytes that are no image.
    """

    def __init__(self, raw: Raw | Image.Image, channels: int, name: str = "image") -> None:
        self.channels, self.name = channels, name
        self._jpeg: tuple[bytes, Image.Image] | None = None
        self._pixels: Tensor | None = None
        if isinstance(raw, Image.Image):
            raw = np.asarray(raw)
        if isinstance(raw, bytes):
            self._open(raw)
        else:
            # Copied where the memory is read-only, which torch would warn of; a batch is copied later anyway.
            pixels = torch.from_numpy(raw if raw.flags.writeable else raw.copy())
            self._pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def _open(self, raw: bytes) -> None:
        try:
            image = Image.open(io.BytesIO(raw), formats=("JPEG",))
        except Exception:  # another format, or none: the careful reader knows
            self._pixels = _tensor(read_image(io.BytesIO(raw), self.channels, self.name))
            return
        turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1
        if turned or image.mode not in ("RGB", "L"):
            self._pixels = _tensor(read_image(io.BytesIO(raw), self.channels, self.name))
        else:
            self._jpeg = raw, image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        if self._jpeg is not None:
            return self._jpeg[1].size
        assert self._pixels is not None
        return self._pixels.shape[2], self._pixels.shape[1]

    def decode(self) -> Image.Image:
        """All of it, in mode ``RGB`` or ``L``.

        Raises:
            UnreadableImageError: truncated or damaged.
        """
        pixels = self._decoded(1)
        return Image.fromarray(pixels[0].numpy() if self.channels == 1 else pixels.permute(1, 2, 0).numpy())

    def resized(self, box: Box, width: int, height: int) -> Tensor:
        """The part inside ``box``, resized (bicubic, antialiased) to ``(C, height, width)`` uint8.

        A JPEG that will be shrunk to half or less is decoded at 1/2, 1/4 or 1/8 of its size, which the format allows
        for a part of the work.

        Raises:
            UnreadableImageError: truncated or damaged.
        """
        left, top, right, bottom = box
        factor = 1
        if self._jpeg is not None:
            shrinks = (f for f in (8, 4, 2) if (right - left) >= f * width and (bottom - top) >= f * height)
            factor = next(shrinks, 1)
        pixels = self._decoded(factor)
        if factor > 1:
            left, top, right, bottom = (round(edge / factor) for edge in box)
        pixels = pixels[:, top:bottom, left:right]
        if pixels.shape[1:] == (height, width):
            return pixels
        # torch's kernel is fastest from HWC to HWC, the order in which images are decoded and batched.
        pixels = pixels[None].contiguous(memory_format=torch.channels_last)
        # What transforms.v2 comes to for uint8 on CPU, without the way there.
        return interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0]

    def _decoded(self, factor: int) -> Tensor:
        if self._pixels is not None:
            return self._pixels
        assert self._jpeg is not None
        raw, image = self._jpeg
        height, width = -(-image.height // factor), -(-image.width // factor)
        colours = "RGB" if self.channels == 3 else "GRAY"
        try:
            pixels = decode_jpeg(raw, colours, min_height=height, min_width=width, min_factor=factor)
        except ValueError:  # Pillow forgives what a person would not see, and says what is wrong with the rest
            whole = read_image(io.BytesIO(raw), self.channels, self.name)
            return _tensor(whole.resize((width, height), Image.Resampling.BOX) if factor > 1 else whole)
        return torch.from_numpy(pixels).permute(2, 0, 1)


_ORIENTATION = 0x0112  # the EXIF tag


def _tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def read_image(source: str | Path | BinaryIO, channels: int = 3, name: str = "standard input") -> Image.Image:
    """Decode an image file completely.

    Args:
        source: path or binary stream.
        channels: 3 for mode ``RGB``, 1 for mode ``L``.
        name: what to call a stream in an error.

    Returns:
        The first frame, turned upright by its EXIF orientation, on white where it is transparent, in 8 bits.

    Raises:
        UnreadableImageError: not an image, truncated, damaged or too large; the message names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata does not matter; damaged pixels raise
            with Image.open(source) as image:
                return to_mode(ImageOps.exif_transpose(image), channels)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        name = str(source) if isinstance(source, str | Path) else name
        reason = "no image format that Pillow knows" if "cannot identify" in str(error) else str(error)
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            reason = str(error.strerror)
        raise UnreadableImageError(f"{name}: unreadable image ({reason})") from error


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
