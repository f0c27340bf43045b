"""Which images an evaluation is of: the run's own, all of them, or those of another folder."""

import json
import shutil
import unicodedata
from pathlib import Path

import pytest

import convnext
from convnext.commands.evaluate import main as evaluate_command
from convnext.errors import CheckpointError, DataError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture(scope="module")
def trained(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    """A run on three class folders without splits, in `flat` beside its folder."""
    root = tmp_path_factory.mktemp("trained") / "flat"
    for name, called in (("0", "0"), ("1", "1"), ("2", NFC)):
        (root / called).mkdir(parents=True)
        for path in sorted((digits_images / "train" / name).iterdir())[:20]:
            shutil.copy(path, root / called)
    options = {
        "epochs": 2,
        "batch_size": 16,
        "data.name": "folder",
        "data.root": root,
        "trackers": (),
        "optimizer.warmup_epochs": 0,
    }
    return convnext.train(convnext.recipe("digits", **options, output=root.parent / "runs"))


@pytest.fixture
def run(trained: convnext.Run, tmp_path: Path) -> Path:
    return shutil.copytree(trained.path, tmp_path / "run", symlinks=True)


def labelled(images: Path, root: Path, **classes: str) -> Path:
    """15 test images of each class, by the folders' names."""
    for called, name in classes.items():
        (root / called).mkdir(parents=True)
        for path in sorted((images / "test" / name).iterdir())[:15]:
            shutil.copy(path, root / called)
    return root


def flat(run: convnext.Run) -> Path:
    root = run.settings.data.root
    assert root is not None
    return root


def test_all_images_of_labelled_class_folders_are_evaluated(
    run: Path, digits_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = labelled(digits_images, tmp_path / "labelled", **{"0": "0", "1": "1", NFD: "2"})
    (root / "1" / "photo.heic").touch()
    report = convnext.evaluate(run, root=root)
    assert report.count == 45
    assert [values["support"] for values in report.per_class.values()] == [15, 15, 15]
    left_out, line = capsys.readouterr().err.splitlines()
    assert left_out.startswith("left out: .heic 1")
    assert line == (
        f"evaluating all 45 images of {root}, which are not the images of {run} (it may have been trained on some); "
        f"the report gets a name of its own"
    )
    assert (run / "all-on-labelled_report.json").exists()
    assert evaluate_command([str(run), "--data.root", str(root), "--split", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == report.top1
    assert convnext.evaluate(run, root=root, split="test").count == 9


def test_some_of_the_classes_are_enough_and_others_are_refused(run: Path, digits_images: Path, tmp_path: Path) -> None:
    report = convnext.evaluate(run, root=labelled(digits_images, tmp_path / "one", **{"1": "1"}))
    assert [values["support"] for values in report.per_class.values()] == [0, 15, 0]
    one_image = labelled(digits_images, tmp_path / "single", **{"0": "0"})
    for path in sorted((one_image / "0").iterdir())[1:]:
        path.unlink()
    assert convnext.evaluate(run, root=one_image).count == 1
    root = labelled(digits_images, tmp_path / "others", **{"1": "1", "7": "7"})
    with pytest.raises(CheckpointError, match=r"knows 3 classes and the data has 2: .*only in the data: 7"):
        convnext.evaluate(run, root=root)
    shutil.rmtree(root / "7")
    (root / "7").mkdir()
    assert convnext.evaluate(run, root=root).count == 15


def test_splits_of_another_folder(run: Path, digits_images: Path, tmp_path: Path) -> None:
    root = tmp_path / "divided"
    for split, name in (("train", "0"), ("val", "1"), ("test", "1")):
        labelled(digits_images, root / split, **{name: name})
    assert convnext.evaluate(run, root=root).count == 15
    assert (run / "test-on-divided_report.json").exists()
    report = convnext.evaluate(run, root=root, split="all")
    assert (report.count, report.per_class["1"]["support"]) == (45, 30)
    shutil.rmtree(root / "train")
    assert convnext.evaluate(run, root=root).count == 15
    assert convnext.evaluate(run, root=root, split="all").count == 30
    with pytest.raises(DataError, match="divided has no train/, only test/ and val/"):
        convnext.evaluate(run, root=root, split="train")


def test_the_runs_own_folder_moved_is_divided_as_in_the_training(
    run: Path, trained: convnext.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(flat(trained), tmp_path / "moved")
    assert convnext.evaluate(run, root=moved) == trained.report
    assert capsys.readouterr().err == f"evaluating the test split: 12 images of {moved}\n"
    assert convnext.evaluate(run, root=moved, split="all").count == 60
    assert (run / "all_report.json").exists()
    (moved / "exclude.txt").write_text("0/" + min((moved / "0").iterdir()).name)
    settings = json.loads((run / "settings.json").read_text())
    settings["data"]["exclude"] = str(moved / "exclude.txt")
    (run / "settings.json").write_text(json.dumps(settings))
    assert convnext.evaluate(run, root=moved, split="all").count == 59


def test_all_images_of_a_run(run: Path, digits_run: convnext.Run, tmp_path: Path) -> None:
    assert convnext.evaluate(run, split="all").count == 60
    digits = shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True)
    report = convnext.evaluate(digits, split="all")
    assert report.count == 1797
    assert report.top1 > digits_run.report.top1 - 0.1
    with pytest.raises(DataError, match="no split is called 'tset': did you mean test"):
        convnext.evaluate(digits, split="tset")


def test_a_run_on_another_kind_of_data_takes_class_folders_of_its_names(
    digits_run: convnext.Run, digits_images: Path, tmp_path: Path
) -> None:
    digits = shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True)
    report = convnext.evaluate(digits, root=digits_images / "test")
    assert report.count == 360
    assert report.top1 == digits_run.report.top1
    assert (digits / "all-on-test_report.json").exists()
    other = labelled(digits_images, tmp_path / "other", cat="0")
    assert convnext.evaluate(digits, root=other).count == 360  # its own test images, which lie in no folder
