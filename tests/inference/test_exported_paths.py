"""What a path means that is given to a command: a run, a checkpoint, an exported file, or a folder of one."""

import json
import shutil
from pathlib import Path

import pytest

import convnext
from convnext.cli import main
from convnext.errors import SettingsError
from convnext.inference.backends import read_info
from convnext.inference.export.export import export
from convnext.weights.files import exported_file


@pytest.fixture(scope="module")
def exported(digits_run: convnext.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an OpenVINO file."""
    folder = tmp_path_factory.mktemp("exported")
    export(digits_run.path, "openvino", output=folder / "digits.xml")
    return folder


def test_a_folder_that_holds_one_exported_file_is_that_file(
    exported: Path, digits_images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = exported / "digits.xml"
    assert exported_file(exported) == exported_file(exported / "digits.bin") == exported_file(file) == file
    image = str(next((digits_images / "test" / "3").iterdir()))
    assert main(["predict", str(exported), image, "--json"]) == main(["predict", str(file), image, "--json"]) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert first == second
    assert main(["evaluate", str(exported), "--json"]) == 0
    assert (exported / "digits_test_report.json").is_file()
    assert main(["inspect", str(exported), "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == json.loads(read_info(file).model_dump_json())
    several = shutil.copytree(exported, tmp_path / "several")
    shutil.copy(file, several / "other.onnx")
    assert main(["predict", str(several), image]) == 2
    assert f"{several} has 2 exported files: give one, digits.xml, other.onnx" in capfd.readouterr().err


def test_a_module_of_ones_own_is_not_for_an_exported_file(exported: Path, digits_run: convnext.Run) -> None:
    module = convnext.Predictor.load(digits_run.path).model
    with pytest.raises(SettingsError, match=r"a module of one's own is of a run, and .*digits\.xml is an exported"):
        convnext.Predictor.load(exported, model=module)


def test_a_run_is_a_run_with_exported_files_in_it(digits_run: convnext.Run, exported: Path, tmp_path: Path) -> None:
    run = shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True)
    shutil.copy(exported / "digits.xml", run)
    shutil.copy(exported / "digits.xml", run / "checkpoints" / "last")
    assert exported_file(run) is None
    assert exported_file(run / "checkpoints" / "last") is None


def test_a_program_is_inspected_without_being_opened(
    digits_run: convnext.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = export(digits_run.path, "torch", output=tmp_path / "digits.pt2").path
    assert main(["inspect", str(path)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"exported file: {path}, by convnext ")
    assert lines[1:3] == ["precision: fp32", "takes: normalised float32 (N, C, H, W)"]
    assert "classes: 10: 0, 1, 2, 3, 4 and 5 more" in lines
    path.write_bytes(b"damaged")
    assert main(["inspect", str(path)]) == 2
    assert f"cannot read {path}: File is not a zip file" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export {file}", "{file} is an exported file already, which predict, evaluate and inspect take; its weights"),
        ("export {folder}", "{file} is an exported file already"),
        ("convert {file} new.pth", "{file} is an exported file already"),
        ("convert {folder} new.pth", "give the run that it was made from"),
        ("train digits --model.weights {file} --epochs 1", "{file} is an exported file already"),
        ("inspect {file} --checkpoint best", "--checkpoint is of a run, and {file} is an exported file"),
        ("evaluate {file} --checkpoint best", "--checkpoint is of a run, and {file} is an exported file"),
        ("predict {file} image.png --checkpoint last", "--checkpoint is of a run, and {file} is an exported file"),
        ("serve {folder} --checkpoint best --port 0", "--checkpoint is of a run, and {file} is an exported file"),
        ("benchmark {file} --checkpoint best", "--checkpoint is of a run, and {file} is an exported file"),
        ("predict convnext_tiny:in1k image.png --checkpoint best", "convnext_tiny:in1k is released weights"),
        ("export convnext_tiny:in1k --checkpoint best", "convnext_tiny:in1k is released weights"),
        ("benchmark convnext_tiny:in1k --checkpoint best", "convnext_tiny:in1k is released weights"),
        ("benchmark convnext_tiny --checkpoint best", "convnext_tiny is a model's name: leave it out"),
        ("convert {weights} new.pth --checkpoint best", "{weights} is one file of weights: leave it out"),
        ("predict {file} image.png --device cuda", "{file} computes on the CPU, not on cuda: leave the device out"),
        ("evaluate {file} --device mps", "{file} computes on the CPU, not on mps: leave the device out"),
        ("serve {file} --device cuda --port 0", "{file} computes on the CPU, not on cuda: leave the device out"),
        ("evaluate {folder}/other.onnx", "file {folder}/other.onnx is not there"),
        (
            "predict {runs} image.png",
            "{runs} has no checkpoint: it is no run's folder, or its training never saved one",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    command: str,
    message: str,
    exported: Path,
    digits_run: convnext.Run,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "folder": exported,
        "file": exported / "digits.xml",
        "runs": digits_run.path.parent,
        "weights": digits_run.path / "checkpoints" / "last" / "model.safetensors",
    }
    assert main(command.format(**names).split()) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert message.format(**names) in error
    assert ("give one of the runs in it, such as" in error) == ("{runs}" in command)
