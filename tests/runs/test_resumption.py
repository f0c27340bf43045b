"""Which of several runs of a name the same command goes on with, and under what."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import convnext
from convnext import RunSettings, recipes
from convnext.cli import main
from convnext.data.loading.loader import Batch
from convnext.runs import resumption
from convnext.runs.folder import write_settings
from convnext.training.interruption import StopSignals
from convnext.training.resolve import prepare
from convnext.training.trainer import Trainer
from tests.support.killing import result

TAG = "in22k_ft_in1k"


def short(output: Path, **changes: Any) -> RunSettings:
    tiny = {"model.depths": (1, 1), "model.dims": (4, 8), "device": "cpu", "trackers": (), "data.workers": 0}
    return convnext.recipe("digits", epochs=1, output=output, **tiny | changes)


def test_the_precision_is_that_of_the_run_that_goes_on(tmp_path: Path) -> None:
    newer = {"precision": "bf16", "seed": 5}
    run = convnext.train(short(tmp_path))
    assert run.settings.precision == "fp32"
    other = convnext.train(short(tmp_path, **newer))
    assert convnext.train(short(tmp_path), resume=True).path == run.path
    again = convnext.train(short(tmp_path, **newer | {"precision": "auto"}), resume=True)
    assert (again.path, again.settings.precision) == (other.path, "bf16")


def settings_of_folder(given: dict[str, Any], complete: Any = recipes.complete) -> RunSettings:
    """What `convnext train folder` makes of these settings."""
    settings, _ = complete(recipes.get("folder").settings.replace(**given), recipes.given_names(given))
    return settings  # type: ignore[no-any-return]


def begin(folder: Path, given: dict[str, Any], chosen: dict[str, Any]) -> RunSettings:
    """The folder of a run for which ``chosen`` was chosen."""
    folder.mkdir(parents=True)
    resolved = prepare(settings_of_folder(given | chosen))[0]
    write_settings(folder, resolved)
    return resolved


def test_weights_that_were_chosen_are_those_of_the_run_that_goes_on(small_folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data.root": small_folder, "output": tmp_path / "runs", "data.image_size": 32}
    trained = {"model.weights": TAG, "model.name": "convnext_tiny"}
    first = begin(tmp_path / "runs" / "folder", given, {"model.weights": None})
    second = begin(tmp_path / "runs" / "folder-2", given | {"epochs": 7}, trained)
    begin(tmp_path / "runs" / "folder-3", given | {"epochs": 9}, {"model.weights": None})
    (tmp_path / "runs" / "folder-4").mkdir()  # killed at once
    for changes, begun in (({}, first), ({"epochs": 7}, second)):
        completed = settings_of_folder(given | changes, resumption.complete)
        assert (completed.model.weights, completed.epochs) == (begun.model.weights, begun.epochs)
        assert prepare(completed)[0] == begun
    neither = settings_of_folder(given | {"epochs": 8}, resumption.complete)
    assert neither.model.weights is None  # as in the newest


@pytest.fixture(scope="module")
def tuned(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A working directory with the first epoch of runs/tuned, which started from the weights of runs/parent; the
    command; and what the whole run ends with."""
    folder = tmp_path_factory.mktemp("tuned")
    for name in "012":
        shutil.copytree(digits_images / "test" / name, folder / "images" / name)
    step = Trainer.step

    def stop_in_the_second_epoch(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if trainer.state.step == trainer.steps_per_epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch, signals)

    common = ["train", "folder", "--data.root", "images", "--trackers", "--data.workers", "0"]
    model = ["--model.depths", "1", "1", "--model.dims", "4", "8", "--model.patch-size", "1"]
    options = [*common, "--epochs", "2", "--name", "tuned", "--model.weights", "runs/parent"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Neither the size nor the mean that these images would be given.
        own = ["--data.image-size", "12", "--data.mean", "0.4", "0.4", "0.4", "--epochs", "1", "--name", "parent"]
        assert main([*common, *model, *own]) == 0
        assert main([*options, "--output", "whole"]) == 0
        patch.setattr(Trainer, "step", stop_in_the_second_epoch)
        assert main(options) == 128 + signal.SIGTERM
    return {"folder": folder, "options": options, "result": result(folder / "whole" / "tuned")}


@pytest.mark.parametrize(
    ("parent", "older", "directory", "by"),
    [
        ("gone", False, ".", ["--resume", "runs/tuned"]),
        ("gone", True, "images", ["--resume", "../runs/tuned"]),
        ("gone", False, ".", "recipe"),
        ("there", True, ".", "recipe"),
        ("there", False, "images", ["--resume", "../runs/tuned"]),
    ],
)
def test_a_run_needs_the_weights_that_it_started_from_no_more(
    parent: str, older: bool, directory: str, by: Any, tuned: dict[str, Any]
) -> None:
    folder = tuned["folder"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree("runs/tuned", "kept", symlinks=True)
        settings = Path("runs/tuned/settings.json")
        weights = RunSettings.model_validate_json(settings.read_text()).model.weights
        assert weights == str(folder / "runs" / "parent")
        if older:  # which wrote down what the user gave
            settings.write_text(settings.read_text().replace(weights, "runs/parent"))
        if parent == "gone":
            Path("runs/parent").rename("parent")
        patch.chdir(folder / directory)
        try:
            assert main([*tuned["options"], "--resume"] if by == "recipe" else ["train", *by]) == 0
            assert result(folder / "runs" / "tuned") == tuned["result"]
            assert not (folder / "runs" / "tuned-2").exists()
        finally:
            patch.chdir(folder)
            shutil.rmtree("runs/tuned")
            Path("kept").rename("runs/tuned")
            if parent == "gone":
                Path("parent").rename("runs/parent")


def test_weights_that_are_not_there_are_an_error_of_a_run_that_begins(
    tuned: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tuned["folder"])
    options = [*tuned["options"][:-1], "runs/gone"]
    for args in (options, [*options, "--resume"], [*options, "--resume", "--name", "new"]):
        assert main(args) == 2
        assert "model.weights: there is no file or folder runs/gone" in capsys.readouterr().err
