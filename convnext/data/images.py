"""Any image that Pillow opens, as the 8-bit RGB or grey picture that a person sees."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from convnext.errors import DataError


class UnreadableImageError(DataError):
    """A file that is no image, or a damaged one."""


def read_image(source: str | Path | BinaryIO, channels: int = 3) -> Image.Image:
    """Decode an image file completely.

    Args:
        source: path or binary stream.
        channels: 3 for mode ``RGB``, 1 for mode ``L``.

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
        name = source if isinstance(source, str | Path) else "standard input"
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
