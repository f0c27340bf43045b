"""Which files are read, what their metadata may be, and how much is decoded at once."""

import io
import shutil
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.data import formats
from convnext.data.files import is_image_name
from convnext.data.formats import FORMATS, silent
from convnext.data.images import Picture, UnreadableImageError
from tests.support.photographs import encoded


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


ORIENTATION = (274, 3, 1, b"\6\0\0\0")
RESOLUTION_UNIT = (296, 3, 1, b"\2\0\0\0")


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries: tag, type, count, and four bytes of value or offset."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def chunk(kind: bytes, data: bytes, *, sound: bool = True) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ (not sound))


def tiff(image: Image.Image, numbers: dict[int, int], others: dict[int, int] | None = None) -> bytes:
    """A file with numbers of 32 bits under tags that Pillow would write otherwise, or not at all."""
    raw = encoded(image, "TIFF", tiffinfo={65_000 + i: 0x12345678 for i in range(len(numbers))} | (others or {}))
    for i, (tag, number) in enumerate(numbers.items()):
        entry = struct.pack("<HHII", 65_000 + i, 4, 1, 0x12345678)
        assert raw.count(entry) == 1
        raw = raw.replace(entry, struct.pack("<HHII", tag, 4, 1, number))
    return raw


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "ICO", "SGI"])
def test_other_formats_under_an_images_name_are_refused(
    colour_image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ran, ghostscript = tmp_path / "ran", tmp_path / ("gs.bat" if sys.platform == "win32" else "gs")
    ghostscript.write_text(f"#!/bin/sh\ntouch {ran}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("gs")
    path = tmp_path / "cat.jpg"
    path.write_bytes(encoded(colour_image, kind))
    with pytest.raises(UnreadableImageError, match=r"cat\.jpg: unreadable image \(no image format .*: AVIF, BMP"):
        Picture.open(path, 3).decode()
    assert not ran.exists()


def test_there_is_a_format_for_each_suffix() -> None:
    Image.init()
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if is_image_name(f"cat{suffix}")}
    assert {Image.registered_extensions()[suffix] for suffix in suffixes} == set(FORMATS)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_that_is_not_tiff_means_nothing(colour_image: Image.Image, kind: str) -> None:
    raw = encoded(colour_image, kind, exif=b"Exif\0\0neither II nor MM")
    assert Picture(raw, 3).size == colour_image.size


@pytest.mark.parametrize("damaged", [b"XXXX", b"MM\xff\xff"])
def test_an_avif_is_turned_whatever_its_exif(colour_image: Image.Image, damaged: bytes) -> None:
    tags = Image.Exif()
    tags[274], tags[271] = 6, "a camera"
    raw = encoded(colour_image, "AVIF", exif=tags)
    assert raw.count(b"MM\0*") == 1
    assert Picture(raw, 3).size == Picture(raw.replace(b"MM\0*", damaged), 3).size == colour_image.size[::-1]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "resolution",
    [
        (2, 1, b"7\0\0\0"),  # text
        (2, 2, b"7\0\0\0"),
        (3, 2, b"\7\0\7\0"),  # two numbers
        (5, 1, b"\xff\xff\xff\xff"),  # beyond the file
        (5, 1, bytes(4)),
        (5, 2**31, b"\x08\0\0\0"),
        (11, 1, b"\0\0\x80\x7f"),  # infinite
        (99, 1, b"7\0\0\0"),  # of no type
    ],
)
def test_an_orientation_counts_beside_ill_typed_tags(
    colour_image: Image.Image, kind: str, resolution: tuple[int, int, bytes]
) -> None:
    tags = exif(ORIENTATION, (282, *resolution), RESOLUTION_UNIT)
    raw = encoded(colour_image.transpose(Image.Transpose.ROTATE_90), kind, exif=tags)
    assert Picture(raw, 3).size == colour_image.size


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xed\0\x14Photoshop 3.0\x008BIM",
        b"\xff\xe0\0\x07JFIF\0",
        b"\xff\xee\0\x07Adobe",
        b"\xff\xe2\0\x0cMPF\0II*\0\0\0",
    ],
)
def test_damaged_segments_of_a_jpeg_do_not_matter(colour_image: Image.Image, segment: bytes) -> None:
    whole = encoded(colour_image, "JPEG", exif=exif(ORIENTATION))
    picture = Picture(whole[:2] + segment + whole[2:], 3)
    assert same(picture.decode(), Picture(whole, 3).decode())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"tEXt", b"a\0b", sound=False),
        chunk(b"iCCP", b"x\0\7abc"),
        chunk(b"gAMA", b"1"),
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
    ],
)
def test_damaged_chunks_of_a_png_do_not_matter(colour_image: Image.Image, damaged: bytes, late: bool) -> None:
    raw, turned = encoded(colour_image, "PNG"), chunk(b"eXIf", exif(ORIENTATION)[6:])
    where = len(raw) - 12 if late else 33
    picture = Picture(raw[:where] + turned + damaged + raw[where:], 3)
    assert same(picture.decode(), colour_image.transpose(Image.Transpose.ROTATE_270))


def test_a_damaged_tiff_directory_does_not_matter(colour_image: Image.Image) -> None:
    for offset in (0xFFFFFFFF, 0, 11, 2**31):
        picture = Picture(tiff(colour_image, {0x8769: offset}, {274: 6}), 3)
        assert same(picture.decode(), colour_image.transpose(Image.Transpose.ROTATE_270))


def test_what_is_wrong_with_the_pixels_is_said_beside_damaged_metadata(colour_image: Image.Image) -> None:
    raw = encoded(colour_image, "PNG", exif=b"Exif\0\0neither II nor MM")
    with pytest.raises(UnreadableImageError, match=r"^image: unreadable image \((?!no image format)"):
        Picture(raw[: len(raw) // 2], 3)


def test_warnings_are_off_for_all_threads_and_on_after_the_last() -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with silent:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(10)
    with silent:
        warnings.warn("first", stacklevel=1)
    warnings.warn("the other thread is still inside", stacklevel=1)
    leave.set()
    thread.join()
    with pytest.raises(UserWarning, match="afterwards"):
        warnings.warn("afterwards", stacklevel=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_more_pixels_than_the_setting_are_refused_before_they_are_decoded(
    colour_image: Image.Image, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    raw, pixels = encoded(colour_image, kind), colour_image.width * colour_image.height
    assert Picture(raw, 3, max_pixels=pixels).size == colour_image.size
    monkeypatch.setattr(formats, "load_upright", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr("convnext.data.images.load_upright", lambda _: pytest.fail("decoded"))
    with pytest.raises(
        UnreadableImageError, match=rf"40 x 30 pixels are more than the {pixels - 1:,} that --data\.max-pixels allows"
    ):
        Picture(raw, 3, max_pixels=pixels - 1)


def test_the_setting_allows_more_than_pillow(monkeypatch: pytest.MonkeyPatch, colour_image: Image.Image) -> None:
    raw = encoded(colour_image, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(raw))
    assert same(Picture(raw, 3).decode(), colour_image)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_large_jpeg_is_decoded_at_a_fraction(colour_image: Image.Image, mode: str, turned: bool) -> None:
    large = colour_image.resize((401, 301)).convert(mode)
    raw = encoded(large, "JPEG", exif=exif(ORIENTATION) if turned else b"", quality=95)
    whole = Picture(raw, 3).decode()
    for limit, factor in ((401 * 301 - 1, 2), (150 * 120, 4), (51 * 38, 8)):
        picture = Picture(raw, 3, max_pixels=limit)
        assert picture.size == (-(-whole.width // factor), -(-whole.height // factor))
        difference = np.asarray(picture.decode(), float) - np.asarray(whole.resize(picture.size), float)
        assert np.abs(difference).mean() < 8
    with pytest.raises(UnreadableImageError, match=r"401 x 301 pixels are more than the 1,937 that --data\.max-pixels"):
        Picture(raw, 3, max_pixels=51 * 38 - 1)


def test_a_progressive_jpeg_is_held_as_a_whole_and_so_refused(colour_image: Image.Image) -> None:
    with pytest.raises(UnreadableImageError, match=r"1,000 that --data\.max-pixels allows"):
        Picture(encoded(colour_image, "JPEG", progressive=True), 3, max_pixels=1000)


def test_tiles_that_are_larger_than_the_image_are_counted(colour_image: Image.Image) -> None:
    raw = tiff(colour_image, {322: 60_000, 323: 60_000})
    with pytest.raises(UnreadableImageError, match=r"100,000,000 that --data\.max-pixels allows"):
        Picture(raw, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "LA", "1", "I;16"])
def test_conversion_in_bands_changes_nothing(
    colour_image: Image.Image, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(colour_image.convert("L"), np.uint16) * 257)
    else:
        image = colour_image.quantize(50) if mode == "P" else colour_image.convert(mode)
    for channels in (1, 3):
        whole = Picture(image, channels).decode()
        with monkeypatch.context() as patch:
            patch.setattr("convnext.data.images.BAND", 7 * 40 + 3)
            assert same(Picture(image, channels).decode(), whole)
