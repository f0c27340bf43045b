"""Predictions from a run's folder alone."""

import io
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import convnext
from convnext.cli import main
from convnext.data.datasets.load import load_splits
from convnext.data.images import UnreadableImageError
from convnext.errors import CheckpointError, DataError, SettingsError
from convnext.inference.files import expand, is_url


def test_predictions_are_ranked_and_right(digits_run: convnext.Run, digits_images: Path) -> None:
    predictor = convnext.Predictor.load(digits_run.path)
    paths = sorted((digits_images / "test").rglob("*.png"))
    results = list(predictor.batches([str(path) for path in paths], top_k=3, batch_size=50))
    right = 0
    for path, result in zip(paths, results, strict=True):
        assert isinstance(result, list)
        probabilities = [probability for _, probability in result]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1.0001
        right += result[0].class_name == path.parent.name
    assert right / len(paths) == pytest.approx(digits_run.report.top1)


def test_paths_streams_and_pillow_images_are_alike(digits_run: convnext.Run, digits_images: Path) -> None:
    predictor = convnext.Predictor.load(digits_run.path, checkpoint="best")
    path = sorted((digits_images / "test" / "7").iterdir())[0]
    expected = predictor(path)
    assert len(expected) == 5
    assert predictor(str(path)) == predictor(io.BytesIO(path.read_bytes())) == expected
    assert predictor(Image.open(path).convert("RGB")) == expected
    assert len(predictor(path, top_k=99)) == 10


def test_arrays_and_tensors_are_images_too(digits_run: convnext.Run, digits_images: Path) -> None:
    predictor = convnext.Predictor.load(digits_run.path)
    image = Image.open(sorted((digits_images / "test" / "7").iterdir())[0]).convert("L")
    expected, grey = predictor(image), np.asarray(image)
    colour = np.stack([grey] * 3, axis=-1)
    for array in (grey, grey[..., None], colour, colour[..., ::-1], np.dstack([colour, np.full_like(grey, 255)])):
        tensor = torch.from_numpy(array.copy())
        assert predictor(array) == expected
        assert predictor(tensor if tensor.ndim == 2 else tensor.permute(2, 0, 1)) == expected
    three = list(predictor.batches([image, image, image]))
    assert list(predictor.batches(np.stack([colour] * 3))) == three
    assert list(predictor.batches([image, grey, torch.from_numpy(grey.copy())])) == three


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8)), r"float64: pixels are uint8, .*\(image \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        (torch.zeros(3, 8, 8), r"float32: pixels are uint8, .*\.byte\(\)"),
        (np.zeros((8, 8), bool), "an array of bool"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"an array of shape \(2, 8, 8, 3\) is no image: that has \(H, W, C\)"),
        (np.zeros((3, 8, 8), np.uint8), r"an array of shape \(3, 8, 8\) is no image"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"a tensor of shape \(8, 8, 3\) is no image: that has \(C, H, W\)"),
        (np.zeros((0, 8), np.uint8), "is no image"),
        (["a.png", "b.png"], "not of type list; many go into Predictor.batches"),
        (None, "not of type NoneType"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str, digits_run: convnext.Run) -> None:
    predictor = convnext.Predictor.load(digits_run.path)
    with pytest.raises(SettingsError, match=message):
        predictor(image)
    with pytest.raises(SettingsError, match=message):
        list(predictor.batches([image]))


def test_any_size_and_mode_is_accepted(digits_run: convnext.Run) -> None:
    predictor = convnext.Predictor.load(digits_run.path)
    digit = load_splits(digits_run.settings.data).test.load(0)
    large = Image.fromarray(np.asarray(digit)).resize((200, 200), Image.Resampling.BICUBIC)
    assert predictor(large.convert("CMYK"), top_k=1)[0].class_name == predictor(digit, top_k=1)[0].class_name


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_one_line(
    value: float, digits_run: convnext.Run, digits_images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.json", "model.safetensors"):
        shutil.copy(digits_run.path / "checkpoints" / "last" / name, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["head.bias"][3] = value
    save_file(tensors, tmp_path / "model.safetensors")
    image = str(next((digits_images / "test" / "7").iterdir()))
    for words in ([], ["--json"], ["--embed", str(tmp_path / "features.npy")]):
        assert main(["predict", str(tmp_path), image, *words]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "backend eager: the model's logits are no numbers (NaN or infinite) for 1 of 1 images" in err
    assert not list(tmp_path.glob("features*"))
    with pytest.raises(CheckpointError, match="logits are no numbers"):
        convnext.Predictor.load(tmp_path).explain(image, "7")


def test_a_class_that_cannot_be_has_a_probability_of_zero(digits_run: convnext.Run, digits_images: Path) -> None:
    predictor = convnext.Predictor.load(digits_run.path)

    def never_3(_module: torch.nn.Module, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(torch.arange(10) == 3, -math.inf)

    predictor.model.register_forward_hook(never_3)
    best = predictor(next((digits_images / "test" / "3").iterdir()), top_k=10)
    assert best[-1] == ("3", 0.0)
    assert sum(one.probability for one in best) == pytest.approx(1)


def test_an_unreadable_image_does_not_stop_the_others(
    digits_run: convnext.Run, digits_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    good = sorted((digits_images / "test" / "7").iterdir())[0]
    predictor = convnext.Predictor.load(digits_run.path)
    first, second = predictor.batches([tmp_path / "bad.png", good])
    assert isinstance(first, UnreadableImageError)
    assert second == predictor(good)
    with pytest.raises(UnreadableImageError, match=r"bad\.png"):
        predictor(tmp_path / "bad.png")


def test_what_is_a_url() -> None:
    urls = ["http://a/b.jpg", "HTTPS://a", "ftp://a", "s3://a/b"]
    assert all(map(is_url, urls))
    assert not any(map(is_url, ("a.jpg", "/a//b.jpg", "C:\\a.jpg", "*.jpg", "-", "convnext_tiny:in1k", "a b://c")))
    assert expand(urls) == urls


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "deep/c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / "in" / name).touch()
    root = str(tmp_path / "in")
    assert expand([root]) == [f"{root}/a.PNG", f"{root}/b.jpg", f"{root}/deep/c.webp"]
    assert expand([f"{root}/*.jpg", "-", f"{root}/notes.txt"]) == [f"{root}/b.jpg", "-", f"{root}/notes.txt"]
    with pytest.raises(DataError, match="is not there"):
        expand([f"{root}/missing.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        expand([str(tmp_path / "empty")])
