"""Any image that Pillow opens comes out as the picture that a person sees."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from convnext.data.images import Picture, UnreadableImageError
from tests.support.photographs import encoded as saved


def decoded(raw: bytes | Image.Image, channels: int = 3) -> Image.Image:
    return Picture(raw, channels).decode()


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
    assert mean_difference(decoded(saved(converted, kind)), colour_image) <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["8 bit", "16 bit PNG", "16 bit TIFF", "16 bit PGM", "float", "1 bit", "alpha"])
def test_grey_modes(kind: str, channels: int) -> None:
    values = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)
    expected = Image.fromarray(values)
    if kind == "8 bit":
        raw = saved(expected, "PNG")
    elif kind == "16 bit PNG":
        raw = saved(Image.fromarray(values.astype(np.uint16) * 257), "PNG")
    elif kind == "16 bit TIFF":
        raw = saved(Image.fromarray(values.astype(np.uint16) * 257), "TIFF")
    elif kind == "16 bit PGM":
        raw = saved(Image.fromarray(values.astype(np.int32) * 257), "PPM")
    elif kind == "float":
        raw = saved(Image.fromarray(values.astype(np.float32) / 255), "TIFF")
    elif kind == "1 bit":
        expected = Image.fromarray(((values > 127) * 255).astype(np.uint8))
        raw = saved(expected.convert("1"), "PNG")
    else:
        raw = saved(expected.convert("LA"), "PNG")
    image = decoded(raw, channels)
    assert mean_difference(image, expected.convert("L" if channels == 1 else "RGB")) <= 0.51


def test_transparent_pixels_are_white(colour_image: Image.Image) -> None:
    image = colour_image.convert("RGBA")
    image.putalpha(Image.fromarray(np.full((30, 40), 0, np.uint8)))
    assert decoded(saved(image, "PNG")).getextrema() == ((255, 255),) * 3
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert decoded(saved(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert decoded(saved(palette, "PNG")).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(colour_image: Image.Image, orientation: int, kind: str) -> None:
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
    exif[ExifTags.Base.Orientation] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    picture = Picture(saved(stored, kind, exif=exif, **lossless), 3)
    assert picture.size == colour_image.size
    assert mean_difference(picture.decode(), colour_image) <= (6 if kind == "JPEG" else 0)


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("with_exif", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_orientation_in_xmp_alone_is_none(colour_image: Image.Image, kind: str, with_exif: bool) -> None:
    """As browsers have it, and whether or not there is EXIF that says nothing of it."""
    options: dict[str, object] = {"xmp": XMP.encode(), "dpi": (72, 72)}
    if kind == "TIFF":
        options = {"tiffinfo": {700: XMP.encode()}}
    elif kind == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)  # type: ignore[attr-defined]
    if with_exif and kind != "TIFF":
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Make] = "a camera"  # type: ignore[index]
    raw = saved(colour_image, kind, **options)
    with Image.open(io.BytesIO(raw)) as image:
        assert ImageOps.exif_transpose(image).size == colour_image.size[::-1]  # Pillow turns it
    picture = Picture(raw, 3)
    assert picture.size == colour_image.size
    assert mean_difference(picture.decode(), colour_image) <= (6 if kind in ("JPEG", "WEBP") else 0)


def test_a_stream_is_read_from_its_beginning(colour_image: Image.Image) -> None:
    stream = io.BytesIO()
    colour_image.save(stream, "PNG")
    for _ in range(2):
        assert mean_difference(Picture.open(stream, 3).decode(), colour_image) == 0
    with pytest.raises(UnreadableImageError, match=r"^standard input: unreadable image \(no image format"):
        Picture.open(io.BytesIO(b"no image"), 3)


def test_a_pillow_image_needs_no_file(colour_image: Image.Image) -> None:
    assert mean_difference(decoded(colour_image.convert("RGBA")), colour_image) == 0
    assert decoded(colour_image, 1).mode == "L"


@pytest.mark.parametrize("fault", ["truncated", "text", "empty", "missing", "folder"])
def test_unreadable_files_are_named(colour_image: Image.Image, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "cat.jpg"
    if fault == "truncated":
        data = saved(colour_image.resize((300, 300)), "JPEG")
        path.write_bytes(data[: len(data) // 2])
    elif fault == "text":
        path.write_text("this is no image")
    elif fault == "empty":
        path.touch()
    elif fault == "folder":
        path.mkdir()
    with pytest.raises(UnreadableImageError, match=r"cat\.jpg: unreadable image \(.+\)") as error:
        Picture.open(path, 3).decode()
    assert "\n" not in str(error.value)
