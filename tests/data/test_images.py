"""Any image that Pillow opens comes out as the picture that a person sees."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.data.images import UnreadableImageError, read_image, to_mode


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    assert one.mode == other.mode
    assert one.size == other.size
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"),
    [
        ("RGB", "PNG", 0),
        ("RGBA", "PNG", 0),
        ("RGBA", "WEBP", 6),
        ("P", "PNG", 4),
        ("P", "GIF", 4),
        ("CMYK", "JPEG", 8),
        ("CMYK", "TIFF", 1),
        ("YCbCr", "JPEG", 6),
        ("LAB", "TIFF", 12),
        ("RGB", "BMP", 0),
    ],
)
def test_colour_modes(colour_image: Image.Image, mode: str, kind: str, tolerance: float) -> None:
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(colour_image, *profiles, outputMode="LAB")
        assert converted is not None
    elif mode == "P":
        converted = colour_image.quantize(256)
    else:
        converted = colour_image.convert(mode)
    assert mean_difference(read_image(saved(converted, kind)), colour_image) <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["8 bit", "16 bit PNG", "16 bit TIFF", "32 bit", "float", "1 bit", "alpha"])
def test_grey_modes(kind: str, channels: int) -> None:
    values = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)
    expected = Image.fromarray(values)
    if kind == "8 bit":
        stream = saved(expected, "PNG")
    elif kind == "16 bit PNG":
        stream = saved(Image.fromarray(values.astype(np.uint16) * 257), "PNG")
    elif kind == "16 bit TIFF":
        stream = saved(Image.fromarray(values.astype(np.uint16) * 257), "TIFF")
    elif kind == "32 bit":
        stream = saved(Image.fromarray(values.astype(np.int32) * 257), "TIFF")
    elif kind == "float":
        stream = saved(Image.fromarray(values.astype(np.float32) / 255), "TIFF")
    elif kind == "1 bit":
        expected = Image.fromarray(((values > 127) * 255).astype(np.uint8))
        stream = saved(expected.convert("1"), "PNG")
    else:
        stream = saved(expected.convert("LA"), "PNG")
    image = read_image(stream, channels)
    assert mean_difference(image, expected.convert("L" if channels == 1 else "RGB")) <= 0.51


def test_transparent_pixels_are_white(colour_image: Image.Image) -> None:
    image = colour_image.convert("RGBA")
    image.putalpha(Image.fromarray(np.full((30, 40), 0, np.uint8)))
    assert read_image(saved(image, "PNG")).getextrema() == ((255, 255),) * 3
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert read_image(saved(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert read_image(saved(palette, "PNG")).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(colour_image: Image.Image, orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = colour_image.transpose(turns[orientation]) if orientation in turns else colour_image
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert mean_difference(read_image(saved(stored, "PNG", exif=exif)), colour_image) == 0


def test_a_pillow_image_needs_no_file(colour_image: Image.Image) -> None:
    assert mean_difference(to_mode(colour_image.convert("RGBA"), 3), colour_image) == 0
    assert to_mode(colour_image, 1).mode == "L"


@pytest.mark.parametrize("fault", ["truncated", "text", "empty", "missing", "folder"])
def test_unreadable_files_are_named(colour_image: Image.Image, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "cat.jpg"
    if fault == "truncated":
        data = saved(colour_image.resize((300, 300)), "JPEG").getvalue()
        path.write_bytes(data[: len(data) // 2])
    elif fault == "text":
        path.write_text("this is no image")
    elif fault == "empty":
        path.touch()
    elif fault == "folder":
        path.mkdir()
    with pytest.raises(UnreadableImageError, match=r"cat\.jpg: unreadable image \(.+\)") as error:
        read_image(path)
    assert "\n" not in str(error.value)
