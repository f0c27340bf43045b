"""Grey of more than 8 bits is scaled by the file's type, or by a setting of the data set, and never by the image."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convnext import Run
from convnext.cli import main
from convnext.config import DataSettings, ModelSettings, RunSettings
from convnext.data.audit.check import check
from convnext.data.datasets.load import read_splits
from convnext.data.images import Picture, Scale, UnreadableImageError
from convnext.data.sources import statistics
from convnext.errors import DataError
from convnext.inference.predictor import Predictor
from convnext.weights.model_info import ModelInfo
from tests.support.photographs import encoded

RAMP = np.linspace(0, 1, 20 * 30).reshape(20, 30)


def grey(values: NDArray[np.generic], kind: str = "TIFF", **settings: float) -> NDArray[np.uint8]:
    """The levels ``(H, W)`` of a file of these values."""
    return np.asarray(Picture(encoded(Image.fromarray(values), kind), 1, max_value=settings.get("max_value")).decode())


@pytest.mark.parametrize("largest", [100, 255, 256, 4095, 65535])
@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("PPM", np.int32)])
def test_16_bits_are_scaled_alike_whatever_the_brightest_pixel(kind: str, dtype: type, largest: int) -> None:
    values: NDArray[Any] = (RAMP * largest).astype(dtype)
    assert np.array_equal(grey(values, kind), np.floor(values / 257 + 0.5))


@pytest.mark.parametrize("largest", [0.01, 0.5, 1.0, 1.0005])
def test_floats_are_scaled_alike_from_0_to_1(largest: float) -> None:
    values = (RAMP * largest).astype(np.float32)
    assert np.abs(grey(values) - np.minimum(values * 255, 255)).max() <= 0.51


def test_12_bits_that_the_file_states_are_white_at_4095() -> None:
    samples = (RAMP * 4095).astype(np.uint16)
    even, odd = samples[:, ::2].astype(np.uint8), samples[:, 1::2]
    pairs = np.stack([samples[:, ::2] >> 4, ((samples[:, ::2] & 15) << 4) | (odd >> 8), odd & 255], axis=-1)
    del even
    packed = pairs.astype(np.uint8).tobytes()
    # A TIFF whose strip is replaced by one of 12 bits.
    raw = encoded(Image.fromarray(np.zeros((20, 45), np.uint8)), "TIFF")
    assert len(packed) == 20 * 45
    start = raw.rindex(bytes(len(packed)))
    raw = raw[:start] + packed
    for tag, before, after in ((256, 45, 30), (258, 8, 12)):
        for kind in (3, 4):
            entry = tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
            raw = raw.replace(entry + before.to_bytes(4, "little"), entry + after.to_bytes(4, "little"))
    picture = Picture(raw, 1)
    assert picture.scale == Scale(4095, 4095, 0)
    assert np.array_equal(np.asarray(picture.decode()), np.floor(samples * (255 / 4095) + 0.5))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (RAMP * 4095, r"float grey has white at 1, and these values go from 0 to 4,095: .*--data\.max-value"),
        (RAMP - 0.5, r"float grey has white at 1, and these values go from -0\.5 to 0\.5: .*--data\.max-value"),
        (np.where(RAMP > 0.9, np.nan, RAMP), "not finite numbers"),
        (np.where(RAMP > 0.9, np.inf, RAMP), "not finite numbers"),
    ],
)
def test_floats_out_of_range_are_named(values: NDArray[np.float64], problem: str) -> None:
    with pytest.raises(UnreadableImageError, match=problem):
        grey(values.astype(np.float32))


@pytest.mark.parametrize("largest", [0, 200, 60_000, 2**31 - 1])
def test_32_bit_integers_have_no_white_without_the_setting(largest: int) -> None:
    values = (RAMP * largest).astype(np.int32)
    with pytest.raises(UnreadableImageError, match=re.escape(f"to {largest:,.6g}: ") + r".*--data\.max-value"):
        grey(values)
    with pytest.raises(UnreadableImageError, match="32-bit grey"):
        Picture(Image.fromarray(values), 1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_the_setting_says_what_is_white_in_all_types(dtype: type) -> None:
    values: NDArray[Any] = (RAMP * 8000 + (dtype != np.uint16) * -100).astype(dtype)
    expected = np.floor(np.clip(values * (255 / 4000) + 0.5, 0, 255))
    assert np.array_equal(grey(values, max_value=4000), expected)
    scale = Picture(encoded(Image.fromarray(values), "TIFF"), 1, max_value=4000).scale
    assert scale is not None
    assert scale.clipped == pytest.approx(((values > 4000) | (values < 0)).mean())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12-bit images in 16-bit files, of two classes, some darker than others."""
    for number in range(20):
        path = tmp_path / ("light", "dark")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, 2000 if number % 2 else 4000, (16, 16))
        Image.fromarray(values.astype(np.uint16)).save(path)
    return tmp_path


def test_the_check_says_which_setting_dark_images_want(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["datasets", "check", str(folder)])
    line = next(line for line in capsys.readouterr().out.splitlines() if "8 bits" in line)
    assert "20 grey images of more than 8 bits are dark: white is 65,535" in line
    assert "--data.max-value 4095" in line
    main(["datasets", "check", str(folder), "--data.max-value", "4095"])
    assert "8 bits" not in capsys.readouterr().out
    main(["datasets", "check", str(folder), "--data.max-value", "500"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "8 bits" in line)
    assert "are mostly beyond black and white: white is 500" in line
    settings = DataSettings(root=folder, max_value=500)
    assert len(check(read_splits(settings), progress=False).as_dict()["badly_scaled"]) == 20


class Recorder(nn.Module):
    """Keeps the images that it is given."""

    images: Tensor

    def forward(self, images: Tensor) -> Tensor:
        Recorder.images = images
        return torch.zeros(len(images), 2)


def test_training_evaluation_and_prediction_read_by_the_same_setting(folder: Path) -> None:
    settings = RunSettings(
        data=DataSettings(root=folder, image_size=16, max_value=4095, max_pixels=300),
        model=ModelSettings(name="convnext_atto"),
    )
    splits = read_splits(settings.data)
    assert statistics(splits.train)[0][0] > 0.3
    info = ModelInfo.of(settings, replace(splits, mean=(0.0,) * 3, std=(1 / 255,) * 3))
    predictor = Predictor(Recorder(), ModelInfo.model_validate_json(info.model_dump_json()), "cpu")
    for source in (splits.train, splits.test):
        predictor(source.image_name(0))
        assert np.array_equal(Recorder.images[0].permute(1, 2, 0), np.asarray(source.load(0)))
    with pytest.raises(UnreadableImageError, match=r"300 that --data\.max-pixels allows"):
        predictor(encoded(Image.new("L", (17, 18)), "PNG"))


def test_predict_takes_both_settings(tmp_path: Path, digits_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    image, run = tmp_path / "float.tif", str(digits_run.path)
    Image.fromarray((RAMP * 1000).astype(np.float32)).save(image)
    assert main(["predict", run, str(image)]) == 2
    assert "--data.max-value" in capfd.readouterr().err
    assert main(["predict", run, str(image), "--data.max-value", "1000", "--data.max-pixels", "600"]) == 0
    assert main(["predict", run, str(image), "--data.max-pixels", "599"]) == 2
    assert "20 pixels are more than the 599 that --data.max-pixels allows" in capfd.readouterr().err
    assert main(["predict", run, str(image), "--data.max-pixels", "0"]) == 2
    assert "data.max_pixels: " in capfd.readouterr().err


def test_a_folder_of_which_nothing_can_be_read_says_why(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray((RAMP * 5000).astype(np.int32)).save(tmp_path / name / f"{number}.tif")
    with pytest.raises(DataError, match=r"none of .* images can be read; the first: .*--data\.max-value"):
        statistics(read_splits(DataSettings(root=tmp_path)).train)
