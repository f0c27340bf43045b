"""What an export is compared on: a run's images, those of a folder with or without labels, or generated ones."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch

import convnext
from convnext.cli import main
from convnext.data.datasets.load import load_splits
from convnext.inference.export.evidence import gather_evidence
from convnext.weights import catalogue
from convnext.weights.model_info import ModelInfo
from tests.support.loopback import Server

NAME, TAG = "convnextv2_atto", "fcmae_ft_in1k"


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A model with released weights, as far as the command knows, in whose working folder the test runs."""
    torch.manual_seed(0)
    file = BytesIO()
    torch.save({"model": convnext.create_model(NAME).state_dict()}, file)
    server = Server(file.getvalue())
    monkeypatch.setitem(catalogue.WEIGHTS, NAME, {TAG: replace(catalogue.find(NAME, TAG), url=server.url)})
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"{NAME}:{TAG}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def pictures(digits_images: Path, tmp_path: Path) -> Path:
    """Six images in a folder without class folders."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "012345":
        shutil.copy(next((digits_images / "test" / name).iterdir()), folder / f"{name}.png")
    return folder


def test_released_weights_without_images(released: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", released]) == 0
    output = capfd.readouterr()
    assert output.out == f"{NAME}-{TAG}.onnx\n"
    assert "compared with its source on 36 generated images: logits differ by up to" in output.err
    assert "the class of 0" in output.err
    assert "accuracy" not in output.err
    assert main(["export", released, "--precision", "int8"]) == 2
    assert "int8 learns its ranges from images: give a folder of them as --data.root" in capfd.readouterr().err
    assert main(["inspect", str(tmp_path / f"{NAME}-{TAG}.onnx")]) == 0
    assert "licence of the weights it began from: CC-BY-NC-4.0" in capfd.readouterr().out


def test_released_weights_on_images_without_labels(
    released: str, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["export", released, "--data.root", str(pictures), "--precision", "fp16"]
    assert main(words) == 2
    assert "fp16 can cost accuracy, which cannot be measured" in (error := capfd.readouterr().err)
    assert "or --max-drop inf to do without" in error
    assert main([*words, "--max-drop", "inf"]) == 0
    error = capfd.readouterr().err
    assert f"on 6 images of {pictures}: logits differ" in error
    assert f"accuracy not measured: {pictures} has no class folders with the names of the model's classes" in error


def test_int8_of_a_run_on_images_without_labels(
    digits_run: convnext.Run, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--precision", "int8", "--data.root", str(pictures), "--output", str(tmp_path / "model.xml")]
    assert main(["export", str(digits_run.path), "--format", "openvino", *words, "--max-drop", "inf"]) == 0
    error = capfd.readouterr().err
    assert "int8: 16 of 16 products" in error
    assert "accuracy not measured" in error


def test_labels_count_where_folders_are_called_like_the_classes(
    digits_run: convnext.Run, digits_images: Path, small_folder: Path, pictures: Path
) -> None:
    data = digits_run.settings.data
    info = ModelInfo.model_validate_json((digits_run.path / "checkpoints" / "last" / "model.json").read_text())
    own = gather_evidence(info, data, None, {})
    assert (own.title, own.choosing_split) == ("test images", "val")
    assert own.compared.fingerprint() == load_splits(data).test.fingerprint()
    for root, test in ((digits_images, 360), (small_folder, 15), (small_folder / "test", 3)):
        evidence = gather_evidence(info, data, root, {})
        assert evidence.splits is not None
        assert len(evidence.splits.test) == test
        assert set(evidence.splits.test.targets) <= set(range(len(info.classes)))
    shutil.move(small_folder / "test" / "2", small_folder / "test" / "two")
    for root in (pictures, small_folder / "test"):
        evidence = gather_evidence(info, data, root, {})
        assert evidence.splits is None
        assert len(evidence.compared) == len(list(root.rglob("*.png")))
