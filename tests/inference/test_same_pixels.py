"""Prediction gives what evaluation measures: the same pixels out of the same file, and the same probabilities."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from convnext import Predictor, create_model
from convnext.config import ModelSettings
from convnext.data.files import scan_folder
from convnext.data.images import UnreadableImageError
from convnext.evaluation.evaluator import compute_logits
from convnext.weights.model_info import ModelInfo
from tests.support.photographs import encoded

CLASSES = ("a", "b", "c")
SIZE = 16
PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg"))
CPU = torch.device("cpu")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


class Recorder(nn.Module):
    """A small random ConvNeXt that keeps the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = create_model("convnext_tiny", len(CLASSES), depths=(1, 1), dims=(8, 16), patch_size=4)
        self.images = list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.images += images.clone()
        logits: Tensor = self.model(images)
        return logits


MODEL = Recorder()


def info(center_crop: float) -> ModelInfo:
    return ModelInfo(
        model=ModelSettings(name="convnext_tiny"),
        classes=CLASSES,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.2, 0.3),
        image_size=SIZE,
        center_crop=center_crop,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model takes longer where threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    MODEL.images = []
    yield MODEL.images


def check(files: dict[str, bytes], center_crop: float, batch_size: int = 1) -> None:
    """Prediction and evaluation of the files, by name, agree."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").mkdir()
        for name, raw in files.items():
            (Path(folder) / "a" / name).write_bytes(raw)
        source = scan_folder(Path(folder), ["a"])
        with recorded() as evaluated:
            output = compute_logits(
                MODEL, source, info(center_crop), device=CPU, batch_size=batch_size, workers=0, strict=True
            )
        predictor = Predictor(MODEL, info(center_crop), "cpu")
        paths = [source.path(index) for index in range(len(source))]
        for images in (paths, [path.read_bytes() for path in paths], [io.BytesIO(path.read_bytes()) for path in paths]):
            with recorded() as predicted:
                results = list(predictor.batches(images, top_k=3, batch_size=batch_size))
            assert len(evaluated) == len(predicted) == len(files)
            for path, one, other in zip(paths, evaluated, predicted, strict=True):
                assert torch.equal(one, other), path.name
            for probabilities, result in zip(output.logits.softmax(1), results, strict=True):
                assert not isinstance(result, Exception)
                assert [probability for _, probability in sorted(result)] == pytest.approx(
                    probabilities.tolist(), rel=1e-5
                )


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


NEAR_MULTIPLES = [factor * SIZE + odd for factor in range(1, 10) for odd in (-1, 0, 1)]
lengths = st.one_of(st.integers(5, 9 * SIZE + 7), st.sampled_from(NEAR_MULTIPLES))


@given(
    size=st.tuples(lengths, lengths),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    orientation=st.integers(1, 8),
    xmp=st.sampled_from([b"", XMP]),
    progressive=st.booleans(),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    quality=st.integers(30, 100),
    center_crop=st.sampled_from([0.875, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_jpeg_of_any_kind(
    size: tuple[int, int],
    mode: str,
    orientation: int,
    xmp: bytes,
    progressive: bool,
    subsampling: str,
    quality: int,
    center_crop: float,
) -> None:
    raw = encoded(
        PHOTOGRAPH.resize(size).convert(mode),
        "JPEG",
        exif=exif(orientation) if orientation > 1 else b"",
        xmp=xmp,
        progressive=progressive,
        subsampling=subsampling,
        quality=quality,
    )
    check({"0.jpg": raw}, center_crop)


@pytest.mark.parametrize("center_crop", [0.875, 1.0])
@pytest.mark.parametrize("size", [(9, 7), (16, 16), (33, 31), (131, 90), (24, 300), (400, 20)])
def test_other_formats_and_a_batch_of_all(size: tuple[int, int], center_crop: float) -> None:
    image = PHOTOGRAPH.resize(size)
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    deep = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    files = {f"{mode}.png": encoded(image.convert(mode), "PNG") for mode in ("1", "L", "P", "RGB")}
    files |= {f"{mode}.png": encoded(alpha.convert(mode), "PNG") for mode in ("LA", "RGBA")}
    files |= {"I;16.png": encoded(deep, "PNG"), "turned.png": encoded(image, "PNG", exif=exif(6))}
    files |= {f"{lossless}.webp": encoded(image, "WEBP", lossless=lossless) for lossless in (True, False)}
    files |= {f"alpha {lossless}.webp": encoded(alpha, "WEBP", lossless=lossless) for lossless in (True, False)}
    files |= {"xmp.webp": encoded(image, "WEBP", xmp=XMP), "xmp.jpg": encoded(image, "JPEG", xmp=XMP)}
    files |= {f"{turn}.jpg": encoded(image, "JPEG", exif=exif(turn)) for turn in range(1, 9)}
    check(files, center_crop)
    check(files, center_crop, batch_size=len(files))


def test_a_pillow_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(PHOTOGRAPH, "JPEG")[:20_000])
    with Image.open(path) as image, pytest.raises(UnreadableImageError, match=r"^image: unreadable image \("):
        Predictor(MODEL, info(1.0), "cpu")(image)
