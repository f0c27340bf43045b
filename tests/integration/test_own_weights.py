"""A trained model used as what it is: by the run's folder, a checkpoint's, or its file; and trained on from there."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import convnext
from convnext.cli import main
from convnext.errors import CheckpointError, SettingsError

FORMS = ("run", "last", "file", "copy", "copied file")


def argument(form: str, run: Path, tmp_path: Path) -> Path:
    """What a user gives for the run: its folder, its checkpoint's, a file, or copies of these that stand alone."""
    last = run / "checkpoints" / "last"
    if form.startswith("cop"):
        last = shutil.copytree(last, tmp_path / "elsewhere")
    return run if form == "run" else last / "model.safetensors" if "file" in form else last


@pytest.mark.parametrize("form", FORMS)
def test_predict_evaluate_convert_and_create_model(
    form: str, digits_run: convnext.Run, digits_images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True)
    given = argument(form, run, tmp_path)
    image = next((digits_images / "test" / "3").iterdir())
    assert main(["predict", str(given), str(image), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["predictions"][0]["class"] == "3"
    for report in tmp_path.rglob("*_report.json"):
        report.unlink()
    assert convnext.evaluate(given).top1 == digits_run.report.top1
    home = tmp_path / "elsewhere" if form.startswith("cop") else run
    assert list(tmp_path.rglob("*_report.json")) == [home / "test_report.json"]
    assert main(["convert", str(given), str(tmp_path / "out.pth"), "--to", "timm"]) == 0
    model = convnext.create_model(weights=str(given))
    expected = load_file(digits_run.path / "checkpoints/last/model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert capfd.readouterr().err.splitlines() == [
        "evaluating the test split: 360 images",
        "the weights are in its layout, but timm builds no ConvNeXt with 3 stages",
    ]


def test_what_is_no_checkpoint_is_one_line(digits_run: convnext.Run, tmp_path: Path) -> None:
    last = digits_run.path / "checkpoints" / "last"
    with pytest.raises(CheckpointError, match="is one checkpoint, and 'best' is for a run's folder"):
        convnext.Predictor.load(last, "best")
    alone = Path(shutil.copy(last / "model.safetensors", tmp_path))
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.json: it is not there"):
        convnext.Predictor.load(alone)
    other = Path(shutil.copy(alone, tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not a folder"):
        convnext.Predictor.load(other)
    with pytest.raises(SettingsError, match="which model"):
        convnext.create_model(weights=str(other))
    with pytest.raises(SettingsError, match=r"no file or folder in21k, nor a released tag .*did you mean .*in22k"):
        convnext.create_model("convnext_tiny", weights="in21k")
    with pytest.raises(
        SettingsError, match=r"model\.dims is \(8, 8, 8\), but that of .* is \(32, 64, 128\): leave it out"
    ):
        convnext.create_model("convnext_tiny", weights=str(last), dims=(8, 8, 8))


def fine_tune(tmp_path: Path, root: Path, **changes: Any) -> convnext.Run:
    changes |= {"data.root": root, "optimizer.lr": 1e-9, "ema_decay": None, "data.workers": 0}
    changes["output"] = tmp_path / "runs"
    return convnext.train(convnext.recipe("folder", epochs=1, batch_size=16, trackers=(), **changes))


@pytest.fixture(scope="module")
def trained_parent(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    """A run on three classes of folders."""
    folder = tmp_path_factory.mktemp("parent")
    root = folder / "three"
    for name in ("0", "1", "2"):
        shutil.copytree(digits_images / "train" / name, root / name)
    settings = {"data.root": root, "data.image_size": 16, "data.workers": 0, "output": folder, "name": "parent"}
    return convnext.train(convnext.recipe("folder", epochs=2, trackers=(), **settings))


@pytest.fixture
def parent(trained_parent: convnext.Run, tmp_path: Path) -> convnext.Run:
    """A copy of `trained_parent`."""
    return replace(trained_parent, path=shutil.copytree(trained_parent.path, tmp_path / "runs/parent", symlinks=True))


def test_fine_tuning_from_a_run(parent: convnext.Run, small_folder: Path, tmp_path: Path, capfd: Any) -> None:
    before = load_file(parent.path / "checkpoints/last/model.safetensors")
    body = "stages.0.0.pwconv1.weight"

    same = fine_tune(tmp_path, small_folder, **{"model.weights": str(parent.path)})
    assert (same.settings.model.dims, same.settings.data.image_size) == (parent.settings.model.dims, 16)
    assert (same.settings.data.mean, same.settings.data.std) == (parent.settings.data.mean, parent.settings.data.std)
    after = load_file(same.path / "checkpoints/last/model.safetensors")
    for name in ("head.weight", body):
        torch.testing.assert_close(after[name], before[name])
    assert f"started from {parent.path}" in capfd.readouterr().err

    for old, new in (("0", "z"), ("1", "y"), ("2", "x")):  # other classes
        (small_folder / "train" / old).rename(small_folder / "train" / new)
        (small_folder / "test" / old).rename(small_folder / "test" / new)
    other = fine_tune(tmp_path, small_folder, **{"model.weights": str(parent.path / "checkpoints/best")})
    after = load_file(other.path / "checkpoints/last/model.safetensors")
    torch.testing.assert_close(after[body], load_file(parent.path / "checkpoints/best/model.safetensors")[body])
    note = "the classifier of other classes (0, 1, 2) is left out: the model's own, of 3, starts from random weights"
    assert note in capfd.readouterr().err
    shutil.rmtree(parent.path)  # the run needs it no more
    assert convnext.evaluate(other.path).top1 == other.report.top1


def test_classes_in_another_order(parent: convnext.Run, small_folder: Path, tmp_path: Path, capfd: Any) -> None:
    last = parent.path / "checkpoints" / "last"
    info = json.loads((last / "model.json").read_text())
    (last / "sha256.json").unlink()
    (last / "model.json").write_text(json.dumps(info | {"classes": ["2", "0", "1"]}))
    run = fine_tune(tmp_path, small_folder, **{"model.weights": str(last / "model.safetensors")})
    assert "its classes are put into the images' order" in capfd.readouterr().err
    before, after = (load_file(folder / "model.safetensors") for folder in (last, run.path / "checkpoints/last"))
    torch.testing.assert_close(after["head.weight"], before["head.weight"][[1, 2, 0]])


def test_what_the_user_sets_has_to_agree_with_the_run(parent: convnext.Run, small_folder: Path, capfd: Any) -> None:
    args = ["train", "folder", "--data.root", str(small_folder), "--model.weights", str(parent.path), "--dry-run"]
    assert main([*args, "--model.depths", "1", "1"]) == 2
    assert "model.depths is (1, 1), but that of" in capfd.readouterr().err
    assert main([*args, "--batch-size", "8"]) == 0
    assert f'"weights": "{parent.path}"' in capfd.readouterr().out
