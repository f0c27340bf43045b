"""Image files by Pillow: only the formats that are meant, and of their metadata the orientation alone.

Damaged metadata makes no image unreadable, and what Pillow warns of stays inside `silent`.
"""

import importlib
import io
import logging
import math
import threading
import warnings
from typing import Final

from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, TiffImagePlugin

# The first whose signature fits; TGA has none. What others Pillow knows may start programs (PostScript) or read files.
# Each with the beginning of its module's name, which makes it known to Pillow once it is imported.
FORMATS: Final = {
    **{"JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp"},
    **{"TIFF": "Tiff", "PPM": "Ppm", "AVIF": "Avif", "JPEG2000": "Jpeg2K", "TGA": "Tga"},
}
_TURNS: Final[dict[object, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF

logging.getLogger("PIL").addHandler(logging.NullHandler())  # or it would print where nobody listens


class _Silent:
    """Warnings are off as long as any thread is inside, which `warnings.catch_warnings` alone would mix up."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


silent: Final = _Silent()


def open_image(raw: bytes, exif: bytes = b"") -> ImageFile.ImageFile:
    """An image of one of the `FORMATS`, of which only the header is read; to be used inside `silent`.

    Args:
        raw: the file's bytes.
        exif: in place of the file's own.

    Raises:
        Exception: of any kind: Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, …
    """
    for name, module in FORMATS.items():
        importlib.import_module(f"PIL.{module}ImagePlugin")
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(raw[:16]) is not True:
            continue
        if name == "JPEG":  # and not Pillow's choice between that and several images, whose index may be damaged
            factory = JpegImagePlugin.JpegImageFile
        try:
            image = factory(io.BytesIO(raw), "")
        except SyntaxError:
            if accept is None:
                continue
            raise
        if exif:
            image.info["exif"] = exif
        if 0 in image.size:
            raise ValueError("it has no pixels")
        return image
    raise ValueError(f"no image format that is read here: {', '.join(sorted(FORMATS))}")


def bound_pixels(image: ImageFile.ImageFile, raw: bytes, max_pixels: int) -> None:
    """Have an image decoded at no more than ``max_pixels`` at once, a JPEG at 1/2, 1/4 or 1/8 of its size if need be.

    Args:
        image: of `open_image`.
        raw: the file's bytes.
        max_pixels: the most.

    Raises:
        ValueError: it is larger.
    """
    width, height = image.size
    if width * height > max_pixels and image.format == "JPEG":
        scans = _bare_jpeg(raw)[0].partition(b"\xff\xd9")[0].count(b"\xff\xda")
        # Several scans are held as a whole while they are decoded, at whatever size.
        if scans == 1 and "progressive" not in image.info:
            factor = next((f for f in (2, 4) if -(-width // f) * -(-height // f) <= max_pixels), 8)
            image.draft(None, (max(width // factor, 1), max(height // factor, 1)))
    pixels = image.size[0] * image.size[1]
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # may have tiles that are larger than itself
        edges = [image.tag_v2.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        pixels = max(pixels, math.prod(edge for edge in edges if isinstance(edge, int)))
    if pixels > max_pixels:
        raise ValueError(
            f"{width:,} x {height:,} pixels are more than the {max_pixels:,} that --data.max-pixels allows"
        )


def turn(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright by its EXIF orientation; None for nothing, or where that cannot be read."""
    # An orientation that stands in XMP alone counts for Pillow, and not for browsers and other decoders.
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # no TIFF structure, entries of other types, …
        return None


def load_upright(image: ImageFile.ImageFile) -> Image.Image:
    """All pixels of an image of `open_image`, turned upright; it raises what that does."""
    method = None
    if tiff := isinstance(image, TiffImagePlugin.TiffImageFile):
        method = turn(image)
        exif = image.getexif()
        for tag in list(exif):  # Pillow would read all of them once more, and turn the image
            del exif[tag]
    image.load()
    if not tiff:
        method = turn(image)  # a PNG may have it after the pixels
    return image if method is None else image.transpose(method)


def without_metadata(raw: bytes) -> tuple[bytes, bytes]:
    """A JPEG, PNG or AVIF file without all that its pixels do not depend on, and its EXIF; others as they are."""
    if raw.startswith(b"\xff\xd8\xff"):
        return _bare_jpeg(raw)
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return _bare_png(raw)
    if raw[4:8] == b"ftyp":  # whose orientation is not in EXIF
        return raw.replace(b"Exif", b"free", 1), b""
    return raw, b""


def _bare_jpeg(raw: bytes) -> tuple[bytes, bytes]:
    segments, exif, start = [raw[:2]], b"", 2
    while raw[start : start + 1] == b"\xff" and (marker := raw[start + 1 : start + 2]) not in (b"", b"\xda"):
        end = start + 2 + int.from_bytes(raw[start + 2 : start + 4], "big")
        body = raw[start + 4 : end]
        if marker == b"\xe1" and body.startswith(b"Exif\0\0"):
            exif += body[6:]
        # JFIF and Adobe segments say what the colours are.
        wanted = len(body) >= 12 if marker in (b"\xe0", b"\xee") else not (b"\xe0" <= marker <= b"\xef")
        if wanted and marker != b"\xfe":
            segments.append(raw[start:end])
        start = max(end, start + 2)
    return b"".join([*segments, raw[start:]]), exif


def _bare_png(raw: bytes) -> tuple[bytes, bytes]:
    segments, exif, start = [raw[:8]], b"", 8
    while kind := raw[start + 4 : start + 8]:
        end = start + 12 + int.from_bytes(raw[start : start + 4], "big")
        if kind == b"eXIf":
            exif = raw[start + 8 : end - 4]
        if kind[:1].isupper() or kind == b"tRNS":
            segments.append(raw[start:end])
        start = end
    return b"".join(segments), exif
