"""Whatever the bytes, an image is pixels of its size or an `UnreadableImageError`; nothing else gets out."""

import random
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from convnext.data.formats import FORMATS
from convnext.data.images import Picture, UnreadableImageError
from convnext.data.transforms import EvalTransform
from tests.support.photographs import encoded, patches

_CASES = 1000  # of a format
_NUMBERS = (bytes(2), bytes(4), b"\xff" * 2, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")


def _files() -> dict[str, list[bytes]]:
    """Sound files of every format, in most of the ways that it has."""
    image = patches()[0].resize((61, 47))
    grey, alpha, tags = image.convert("L"), image.copy(), Image.Exif()
    alpha.putalpha(grey)
    tags[274], tags[271], tags.get_ifd(0x8769)[36867] = 6, "a camera", "2020:01:01 00:00:00"
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    floats = Image.fromarray(np.asarray(grey, np.float32) / 255)
    bilevel, palette, metadata = grey.convert("1"), image.quantize(200), {"exif": tags, "xmp": b"<x/>", "comment": "hi"}
    plain = b"P3\n3 2\n255\n" + b" ".join(b"%d" % value for value in range(18))
    files = {
        "JPEG": [encoded(picture, "JPEG", **metadata) for picture in (image, grey, image.convert("CMYK"))]
        + [encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True)],
        "PNG": [encoded(picture, "PNG", exif=tags) for picture in (image, alpha, deep, bilevel)]
        + [encoded(palette, "PNG", transparency=3)],
        "WEBP": [encoded(image, "WEBP", exif=tags), encoded(alpha, "WEBP", lossless=True)],
        "GIF": [encoded(image, "GIF"), encoded(image, "GIF", save_all=True, append_images=[image.rotate(20)])],
        "BMP": [encoded(image, "BMP"), encoded(image.quantize(16), "BMP")],
        "TIFF": [encoded(picture, "TIFF", exif=tags) for picture in (image, deep, floats, grey.convert("I"))]
        + [encoded(image, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
        + [encoded(bilevel, "TIFF", compression="group4")],
        "PPM": [*(encoded(picture, "PPM") for picture in (image, grey, deep.convert("I"), floats, bilevel)), plain],
        "AVIF": [encoded(image, "AVIF", exif=tags)],
        "JPEG2000": [encoded(image, "JPEG2000"), encoded(deep, "JPEG2000")],
        "TGA": [encoded(image, "TGA"), encoded(alpha, "TGA", compression="tga_rle")],
    }
    assert set(files) == set(FORMATS)
    return files


FILES = _files()


def _mutated(raw: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, left out, put in or cut off, in the header more often than elsewhere."""
    result, change = bytearray(raw), rng.randrange(6)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        start = rng.randrange(min(len(result), rng.choice([32, 64, 200, 600, len(raw)])))
        if change == 0:
            result[start] = rng.randrange(256)
        elif change == 1:
            result[start] ^= 1 << rng.randrange(8)
        elif change == 2:
            number = rng.choice(_NUMBERS)
            result[start : start + len(number)] = number
        elif change == 3:
            result[start:start] = rng.randbytes(rng.choice([1, 2, 4, 30]))
        elif change == 4 and len(result) > 100:
            del result[start : start + rng.choice([1, 2, 4, 50])]
        else:
            return bytes(result[: start + 1])
    return bytes(result)


def _read(raw: bytes, channels: int, max_value: float | None = 1000) -> bool:
    """Whether there are pixels, which are then of the right shape; else there is one line."""
    problem = ""
    try:
        picture = Picture(raw, channels, "cat.jpg", max_pixels=1_000_000, max_value=max_value)
        image, square = picture.decode(), EvalTransform(16)(picture)
    except UnreadableImageError as error:
        problem = str(error)
    if problem:
        assert re.fullmatch(r"cat\.jpg: unreadable image \(.+\)", problem)
        return False
    assert image.size == picture.size
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert square.shape == (channels, 16, 16)
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files(name: str) -> None:
    rng = random.Random(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(_read(raw, channels) for raw in FILES[name] for channels in (1, 3))
        read = [
            _read(_mutated(rng.choice(FILES[name]), rng), rng.choice([1, 3]), rng.choice([None, 1000]))
            for _ in range(_CASES)
        ]
    assert 0 < sum(read) < _CASES


def test_random_bytes_behind_a_signature_or_none() -> None:
    rng = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for raw in (raw for files in FILES.values() for raw in files for _ in range(20)):
            _read(raw[: rng.choice([0, 2, 4, 8, 16, 30])] + rng.randbytes(rng.randrange(300)), 3)
