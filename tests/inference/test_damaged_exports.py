"""Exported files that are damaged, changed, or somebody else's: one line, and nothing on standard output."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import convnext
from convnext.cli import main
from convnext.inference.export.export import export


@pytest.fixture(scope="module")
def exported(digits_run: convnext.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each format."""
    folder = tmp_path_factory.mktemp("exported")
    suffixes = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
    return {name: export(digits_run.path, name, output=folder / f"model{end}").path for name, end in suffixes.items()}


@pytest.fixture
def refused(digits_images: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """The line with which `convnext predict` refuses a file."""
    image = next((digits_images / "test" / "3").iterdir())

    def line(path: Path) -> str:
        capfd.readouterr()
        assert main(["predict", str(path), str(image), "--trust"]) == 2
        output = capfd.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        assert str(path) in output.err
        return output.err

    return line


def _changed_onnx(source: Path, path: Path, **changes: Any) -> Path:
    """A copy of an ONNX file that says something else of its model."""
    model = onnx.load(source)
    values = json.loads(model.metadata_props[0].value)
    values["preprocessing"] = changes.pop("preprocessing", False)
    values["model"] |= changes
    helper.set_model_props(model, {"convnext": json.dumps(values)})
    onnx.save(model, path)
    return path


def test_a_file_that_says_something_else_of_itself(
    exported: dict[str, Path], tmp_path: Path, refused: Callable[[Path], str]
) -> None:
    file, changed = exported["onnx"], tmp_path / "changed.onnx"
    assert "cannot compute images of shape (1, 16, 16, 1): " in refused(_changed_onnx(file, changed, image_size=16))
    assert "cannot compute images of shape (1, 8, 8, 1): " in refused(_changed_onnx(file, changed, preprocessing=True))
    for classes in (["a", "b"], list("abcdefghijk")):
        line = refused(_changed_onnx(file, changed, classes=classes))
        assert f"says that it has {len(classes)} classes, and of 1 images its logits have shape (1, 10)" in line
    assert "changed.onnx: model.image_size: Input should be " in refused(_changed_onnx(file, changed, image_size=0))
    text = exported["openvino"].read_text()
    (tmp_path / "changed.xml").write_text(text.replace("image_size&quot;:8,", "image_size&quot;:16,"))
    shutil.copy(exported["openvino"].with_suffix(".bin"), tmp_path / "changed.bin")
    assert "cannot compute images of shape (1, 16, 16, 1): " in refused(tmp_path / "changed.xml")
    with zipfile.ZipFile(exported["torch"]) as archive, zipfile.ZipFile(tmp_path / "changed.pt2", "w") as changes:
        for name in archive.namelist():
            changes.writestr(name, archive.read(name).replace(b'"image_size":8,', b'"image_size":16,'))
    assert "cannot compute images of shape (1, 16, 16, 1): " in refused(tmp_path / "changed.pt2")


def test_somebody_elses_model(exported: dict[str, Path], tmp_path: Path, refused: Callable[[Path], str]) -> None:
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "other.onnx")
    assert "other.onnx was not written by convnext export" in refused(tmp_path / "other.onnx")
    helper.set_model_props(model, {"convnext": onnx.load(exported["onnx"]).metadata_props[0].value})
    onnx.save(model, tmp_path / "other.onnx")
    assert "other.onnx cannot compute images of shape (1, 8, 8, 1): " in refused(tmp_path / "other.onnx")
    (tmp_path / "other.xml").write_text("<annotation/>")
    (tmp_path / "other.bin").touch()
    assert "other.xml: it is no model of OpenVINO" in refused(tmp_path / "other.xml")


def test_files_that_are_cut_or_empty(exported: dict[str, Path], tmp_path: Path, refused: Callable[[Path], str]) -> None:
    weights = exported["openvino"].with_suffix(".bin")
    for file in exported.values():
        contents, path = file.read_bytes(), tmp_path / file.name
        shutil.copy(weights, tmp_path)
        for length in (0, len(contents) // 2, len(contents) - 1000):
            path.write_bytes(contents[:length])
            assert "cannot read " in refused(path)
        path.write_bytes(contents)
    (tmp_path / "model.bin").write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "model.xml: Incorrect weights" in refused(tmp_path / "model.xml")


def test_damaged_bytes_end_in_a_prediction_or_a_line(
    exported: dict[str, Path], tmp_path: Path, digits_images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = next((digits_images / "test" / "3").iterdir())
    random = np.random.default_rng(0)
    for number in range(40):
        damaged = bytearray(exported["onnx"].read_bytes())
        # The ends of the file: its graph, and what it says of itself.
        damaged[int(random.integers(4000)) * (1, -1)[number % 2]] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        assert main(["predict", str(tmp_path / "damaged.onnx"), str(image)]) in (0, 2)
    assert "internal error" not in capfd.readouterr().err
