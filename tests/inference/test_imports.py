"""What a prediction does not wait for: packages that take seconds to import."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convnext
from convnext.inference.export.export import export

HEAVY = {"torchvision", "accelerate", "sklearn", "scipy", "matplotlib", "onnx", "sympy", "timm"}
CODE = """
import sys
from convnext.cli import main
status = main(["predict", *sys.argv[1:], "--json"])
print(status, *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def predict(model: Path, images: Sequence[Path]) -> tuple[str, set[str]]:
    """What a fresh process prints, and the packages that it imported."""
    done = subprocess.run([sys.executable, "-c", CODE, model, *images], capture_output=True, text=True, check=True)
    status, *packages = done.stderr.splitlines()[-1].split()
    assert status == "0", done.stderr
    return done.stdout, set(packages)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images that have to be resized, and cropped."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    paths = [folder / name for name in ("a.jpg", "b.png", "c.webp")]
    for path in paths:
        Image.fromarray(pixels).save(path)
    return paths


@pytest.mark.parametrize("preprocessing", [False, True])
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_an_exported_file_predicts_without_torch(
    name: str, preprocessing: bool, digits_run: convnext.Run, images: list[Path], tmp_path: Path
) -> None:
    suffix = ".onnx" if name == "onnx" else ".xml"
    path = export(digits_run.path, name, include_preprocessing=preprocessing, output=tmp_path / f"model{suffix}").path
    output, packages = predict(path, images)
    assert not packages & (HEAVY | {"torch"})
    # Here it is torch that resizes the images, where the file does not.
    for image, one in zip(images, json.loads(output), strict=True):
        expected = convnext.Predictor.load(path)(image)
        assert [prediction["class"] for prediction in one["predictions"]] == [best.class_name for best in expected]
        assert [prediction["probability"] for prediction in one["predictions"]] == pytest.approx(
            [best.probability for best in expected], rel=1e-6
        )


def test_a_run_predicts_with_torch_alone(digits_run: convnext.Run, images: list[Path]) -> None:
    assert not predict(digits_run.path, images)[1] & HEAVY
