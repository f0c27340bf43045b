"""``convnext evaluate`` with its options, and of two runs, as a user calls it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import convnext
from convnext.cli import main
from convnext.comparison import paired_difference
from convnext.evaluation.evaluator import open_run
from tests.support.dataset_archives import tiny_imagenet


@pytest.fixture
def run(digits_run: convnext.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_run.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = convnext.recipe("digits", epochs=3, seed=1, name="other", output=tmp_path_factory.mktemp("runs"))
    return convnext.train(settings).path


def test_calibration_sizes_corruptions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--calibration", "--sizes", "6", "8", "--corruptions", "fog", "contrast", "--limit", "50"]
    assert main(["evaluate", str(run), *asked, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["calibration"]["ece_after"] < values["calibration"]["ece_before"]
    assert values["calibration"]["fitted_on"] == 144
    assert values["calibration"]["loss_before"] == pytest.approx(values["loss"])
    assert values["sizes"]["6"] < values["sizes"]["8"]
    assert {name: len(each) for name, each in values["corruptions"].items()} == {"fog": 5, "contrast": 5}
    surest = values["mistakes"]
    assert [each["probability"] for each in surest] == sorted((each["probability"] for each in surest), reverse=True)
    assert all(each["true"] != each["predicted"] for each in surest)
    for name in ("calibration", "sizes", "corruptions"):
        assert json.loads((run / f"test_{name}.json").read_text())
    assert min(Image.open(run / "test_reliability.png").size) > 300

    assert main(["evaluate", str(run), *asked]) == 0
    printed = capsys.readouterr().out
    assert "fitted on 144 validation images" in printed
    assert "corrupted at 8 px" in printed
    assert surest[0]["path"] in printed


def test_two_runs_side_by_side(run: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), str(other), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    pair = values["pair"]
    assert pair["difference"] == pytest.approx(values["a"]["top1"] - values["b"]["top1"])
    subjects = [open_run(path) for path in (run, other)]
    results = [subject.logits(subject.source, subject.info) for subject in subjects]
    expected = paired_difference(*((each.logits.argmax(1) == each.targets).numpy() for each in results))
    assert (pair["low"], pair["high"], pair["p"]) == (expected.low, expected.high, expected.p)
    for name, each in values["by_class"].items():
        recalls = [values[run]["per_class"][name]["recall"] for run in "ab"]
        assert each["difference"] == pytest.approx(recalls[0] - recalls[1])
    differences = [abs(each["difference"]) for each in values["by_class"].values()]
    assert differences == sorted(differences, reverse=True)

    assert main(["evaluate", str(run), str(run)]) == 0
    printed = capsys.readouterr().out
    assert "+0.00 points" in printed
    assert "p 1.000: they do not differ significantly (these trained weights, on images like these)" in printed


def test_an_exported_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "onnx"]) == 0
    file = next(run.parent.rglob("*.onnx"))
    capsys.readouterr()
    asked = ["--calibration", "--corruptions", "contrast", "--limit", "30", "--json"]
    assert main(["evaluate", str(file), *asked]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(run), *asked]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert exported["calibration"] == pytest.approx(trained["calibration"], rel=1e-3)
    assert exported["corruptions"]["contrast"] == pytest.approx(trained["corruptions"]["contrast"], abs=0.04)
    assert main(["evaluate", str(run), str(file)]) == 0
    assert "do not differ significantly" in capsys.readouterr().out
    assert main(["evaluate", str(file), "--split", "all", "--calibration"]) == 2
    assert "choose --split test" in capsys.readouterr().err
    assert main(["evaluate", str(file), "--sizes", "6"]) == 2
    assert "takes images of one size here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--calibration", "--split", "val"], "choose --split test"),
        (["--calibration", "--split", "all"], "choose --split test"),
        (["--corruptions", "frogs"], "no corruption is called 'frogs': did you mean"),
        (["--limit", "5"], "--limit is of --corruptions and --sizes"),
        (["--corruptions", "fog", "--limit", "0"], "--limit: must be at least 1, got 0"),
        (["--sizes", "0"], "--sizes: needs sides of 1 pixel or more, got 0"),
        (["--sizes"], "--sizes: needs sides of 1 pixel or more, got none"),
        (["nowhere"], "run folder nowhere is not there"),
    ],
)
def test_mistakes(run: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("test", "val", "all"):
        (run / f"{stem}_report.json").unlink(missing_ok=True)
    assert main(["evaluate", str(run), *options]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(run.glob("*_report.json"))  # no image was judged for nothing


def test_two_runs_on_other_images(run: Path, small_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = convnext.recipe("digits", epochs=1, output=run.parent, name="small", batch_size=4).replace(
        **{"data.name": "folder", "data.root": small_folder, "data.val_fraction": 0}
    )
    small = convnext.train(settings).path
    assert main(["evaluate", str(run), str(small)]) == 2
    assert "are evaluated on other images or classes" in capsys.readouterr().err
    assert main(["evaluate", str(small), "--calibration"]) == 2
    assert "there is no 'val' split" in capsys.readouterr().err


def test_data_that_is_tested_on_its_validation_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is held out of the training images is another split, and its report another file."""
    for name, content in tiny_imagenet().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    data = {"data.name": "tiny-imagenet", "data.root": tmp_path, "data.val_fraction": 0.3, "data.workers": 0}
    run = convnext.train(convnext.recipe("digits", epochs=1, batch_size=2, output=tmp_path / "runs", **data)).path
    tested = (run / "val_report.json").read_bytes()
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    assert (run / "val_report.json").read_bytes() == tested
    assert json.loads((run / "held-out_report.json").read_text())["count"] != json.loads(tested)["count"]
    assert main(["evaluate", str(run), "--calibration"]) == 0
    assert (run / "val_calibration.json").exists()
    capsys.readouterr()
    for split in ("val", "all"):
        assert main(["evaluate", str(run), "--calibration", "--split", split]) == 2
        assert "choose --split test" in capsys.readouterr().err


def test_the_model_is_the_same_for_every_split_and_size(run: Path) -> None:
    """Its kernels and averages are put in once, however many times it computes."""
    subject = open_run(run, flip=True)
    first = subject.logits(subject.source, subject.info).logits
    subject.logits(subject.split("val"), subject.info)
    assert torch.equal(first, subject.logits(subject.source, subject.info).logits)
