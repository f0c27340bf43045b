"""The loop: it learns, and neither accumulation nor an interruption changes what it computes."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import convnext
from convnext import recipe
from convnext.data.datasets.load import load_splits
from convnext.data.loading.loader import Batch
from convnext.errors import CheckpointError, DataError, SettingsError, UserError
from convnext.runs.folder import folders, read_metrics
from convnext.storage.locks import locked
from convnext.training import trainer as trainer_module
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.tracking import Tracker
from convnext.training.trainer import Trainer
from tests.support.killing import result


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def short(output: Path, **changes: Any) -> convnext.RunSettings:
    """One epoch of a tiny model with everything random switched on."""
    settings = recipe(
        "digits",
        epochs=2,
        output=output,
        ema_decay=0.9,
        model={"depths": (1, 1), "dims": (8, 16), "stochastic_depth": 0.2},
        data={"workers": 0},
        augment={"mixup": 0.8, "cutmix": 1.0, "policy": "randaugment", "random_erasing": 0.25},
        trackers=(),
        **{"optimizer.clip_norm": 1.0},
    )
    changed: convnext.RunSettings = settings.replace(**changes)
    return changed


def test_a_run_learns_and_leaves_its_files(digits_run: convnext.Run) -> None:
    history = read_metrics(digits_run.path)
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    assert history[-1]["val_loss"] < 0.6 * history[0]["val_loss"]
    assert digits_run.report.top1 > 0.8
    assert digits_run.report.count == 360
    for name in ("curves.png", "test_confusion_matrix.png", "test_predictions.png", "test_mistakes.png"):
        assert (digits_run.path / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((digits_run.path / "test_report.json").read_text())["top1"] == digits_run.report.top1
    for name in ("last", "best"):
        assert (digits_run.path / "checkpoints" / name / "model.safetensors").is_file()
    events = EventAccumulator(str(digits_run.path / "tensorboard")).Reload()
    logged = [event.value for event in events.Scalars("val/loss")]
    assert logged == pytest.approx([line["val_loss"] for line in history])
    saved = convnext.RunSettings.model_validate_json((digits_run.path / "settings.json").read_text())
    assert saved == digits_run.settings
    assert saved.model.in_channels == 1
    assert not list(digits_run.path.rglob("*.tmp"))


def test_runs_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    first, second = (convnext.train(short(tmp_path, epochs=1)) for _ in range(2))
    assert [first.path.name, second.path.name] == ["digits", "digits-2"]
    assert same_weights(first.path, second.path)
    assert folders(tmp_path, "digits") == [second.path, first.path]
    assert folders(tmp_path, "digit") == []


def test_accumulation_gives_the_same_gradient(tmp_path: Path) -> None:
    """Over a whole run without dropped paths, which are drawn for each part."""
    whole, split = (
        convnext.train(short(tmp_path, gradient_accumulation=count, **{"model.stochastic_depth": 0.0}))
        for count in (1, 3)
    )
    for name, tensor in weights(whole.path).items():
        torch.testing.assert_close(weights(split.path)[name], tensor, atol=2e-3, rtol=1e-2)
    assert split.report.loss == pytest.approx(whole.report.loss, rel=1e-3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_resumed_is_the_same(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convnext.train(short(tmp_path / "whole"))
    step, calls = Trainer.step, iter(range(1_000_000))

    def step_with_signal(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if next(calls) in (7, 25):
            os.kill(os.getpid(), number)
        return step(trainer, batch, signals)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_with_signal)
        for expected_step in (8, 26):
            with pytest.raises(InterruptedRunError) as stop:
                convnext.train(short(tmp_path / "cut"), resume=expected_step == 26)
            assert stop.value.signal == number
            state = json.loads((stop.value.folder / "checkpoints" / "last" / "training.json").read_text())
            assert state["step"] == expected_step
    resumed = convnext.train(short(tmp_path / "cut", **{"data.workers": 2}), resume=True)
    assert resumed.path == tmp_path / "cut" / "digits"
    assert same_weights(expected.path, resumed.path)
    assert resumed.report == expected.report
    clock = ("seconds", "images_per_second")
    lines = [
        [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(run.path)]
        for run in (expected, resumed)
    ]
    assert lines[0] == lines[1]


def test_resuming_a_finished_run_evaluates_it_again(digits_run: convnext.Run) -> None:
    again = convnext.train(recipe("digits", epochs=4, output=digits_run.path.parent), resume=True)
    assert again.path == digits_run.path
    assert again.report == digits_run.report


def test_resume_under_other_settings_is_refused(digits_run: convnext.Run) -> None:
    settings = recipe("digits", epochs=5, output=digits_run.path.parent, **{"optimizer.lr": 1e-3})
    with pytest.raises(SettingsError, match=r"epochs was 4, now 5; optimizer\.lr was 0\.002, now 0\.001"):
        convnext.train(settings, resume=True)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    changes = {"optimizer.lr": 1e12, "optimizer.clip_norm": None, "optimizer.warmup_epochs": 0}
    with pytest.raises(UserError, match=r"in 11 steps in a row, up to step \d+, first in .*: lower optimizer\.lr"):
        convnext.train(short(tmp_path, **changes))


def test_impossible_settings_leave_nothing_behind(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    for changes, message in (
        ({"batch_size": 5000, "gradient_accumulation": 1}, "batch_size 5000 is more than the 1293 training images"),
        ({"data.image_size": 1}, "images of 1 px are too small"),
        ({"model.in_channels": 3}, "leave model.in_channels out"),
        ({"precision": "fp16", "device": "cpu"}, "precision fp16 needs a CUDA device"),
        ({"model.name": "convnext_tny"}, "did you mean convnext_tiny"),
    ):
        with pytest.raises(SettingsError, match=message):
            convnext.train(short(output, **changes))
    assert not output.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --output"):
        convnext.train(short(tmp_path / "file"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="device cuda is not available"):
        convnext.train(short(tmp_path, device="cuda"))


def folder_settings(root: Path, output: Path, **changes: Any) -> convnext.RunSettings:
    data = {"root": root, "image_size": 16, "workers": 0}
    model = {"depths": (1, 1), "dims": (8, 16)}
    settings = recipe("folder", epochs=2, output=output, batch_size=16, data=data, model=model, trackers=())
    changed: convnext.RunSettings = settings.replace(**changes)
    return changed


def spoil(folder: Path) -> tuple[Path, Path]:
    """Cut one training image in half, and put a text file with an image's name beside it."""
    cut = sorted((folder / "train" / "1").iterdir())[0]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text = folder / "train" / "2" / "notes.jpg"
    text.write_text("no image")
    return cut, text


def test_unreadable_training_images_are_left_out_and_named(small_folder: Path, tmp_path: Path) -> None:
    cut, text = spoil(small_folder)
    settings = folder_settings(small_folder, tmp_path, **{"data.val_fraction": 0.0, "batch_size": 61})
    run = convnext.train(settings)
    assert len(run.unreadable) == 2
    assert any(str(cut) in line for line in run.unreadable)
    assert any(str(text) in line for line in run.unreadable)
    assert run.report.count == 15


def test_strict_stops_at_an_unreadable_image(small_folder: Path, tmp_path: Path) -> None:
    spoil(small_folder)
    settings = folder_settings(small_folder, tmp_path / "runs", **{"data.val_fraction": 0.0, "batch_size": 61})
    with pytest.raises(DataError, match=r"unreadable image .*without --data\.strict"):
        convnext.train(settings.replace(**{"data.strict": True}))
    assert not list((tmp_path / "runs").iterdir())


def test_best_is_chosen_on_the_validation_split(digits_run: convnext.Run) -> None:
    history = read_metrics(digits_run.path)
    best = max(history, key=lambda line: line["val_top1"])
    folder = (digits_run.path / "checkpoints" / "best").resolve()
    assert json.loads((folder / "training.json").read_text())["step"] == best["step"]
    report = convnext.evaluate(digits_run.path, split="val", checkpoint="best")
    assert report.top1 == pytest.approx(best["val_top1"])
    splits = load_splits(digits_run.settings.data)
    assert splits.val is not None
    assert report.count == len(splits.val)


def test_evaluation_repeats_the_runs_number(digits_run: convnext.Run) -> None:
    assert convnext.evaluate(digits_run.path, batch_size=7, workers=2).top1 == digits_run.report.top1


def test_a_checkpoint_of_other_classes_is_refused(small_folder: Path, digits_images: Path, tmp_path: Path) -> None:
    run = convnext.train(folder_settings(small_folder, tmp_path))
    with pytest.raises(CheckpointError, match=r"knows 3 classes and the data has 10: .*only in the data: 3, 4, 5"):
        convnext.evaluate(run.path, root=digits_images)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = convnext.train(short(tmp_path, trackers=("wandb",)))
    wandb.teardown()  # its service writes on after the run's end
    (identity,) = (run.path / "wandb_id").read_text().split()
    recorded = list((run.path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(recorded) == 1
    assert b"val/top1" in recorded[0].read_bytes()


def test_bf16_on_cpu_learns(tmp_path: Path) -> None:
    run = convnext.train(recipe("digits", epochs=4, output=tmp_path, precision="bf16", trackers=()))
    assert run.report.top1 > 0.7


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = convnext.train(short(tmp_path))
    with locked(run.path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        convnext.train(short(tmp_path), resume=True)
    assert convnext.train(short(tmp_path), resume=True).report == run.report


def test_resume_takes_the_run_with_these_settings_that_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_once(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch, signals)

    step = Trainer.step

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop_at_once)
        with pytest.raises(InterruptedRunError):
            convnext.train(short(tmp_path))
    convnext.train(short(tmp_path))
    convnext.train(short(tmp_path, seed=5))
    assert [path.name for path in folders(tmp_path, "digits")] == ["digits-3", "digits-2", "digits"]
    assert convnext.train(short(tmp_path), resume=True).path.name == "digits"
    assert convnext.train(short(tmp_path), resume=True).path.name == "digits-2"
    assert convnext.train(short(tmp_path, seed=5), resume=True).path.name == "digits-3"


def test_a_signal_in_the_final_evaluation_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Trainer.predict

    def signal_before_the_test(trainer: Trainer, split: str, signals: StopSignals) -> Any:
        if split == "test":
            os.kill(os.getpid(), signal.SIGINT)
        return predict(trainer, split, signals)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "predict", signal_before_the_test)
        with pytest.raises(InterruptedRunError):
            convnext.train(short(tmp_path))
    assert not (tmp_path / "digits" / "test_report.json").exists()
    assert convnext.train(short(tmp_path), resume=True).path.name == "digits"
    assert (tmp_path / "digits" / "test_report.json").exists()


def test_an_interrupted_run_has_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Trainer.step

    def signal_before(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if trainer.state.step == 14:  # in the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(trainer, batch, signals)

    monkeypatch.setattr(Trainer, "step", signal_before)
    with pytest.raises(InterruptedRunError):
        convnext.train(short(tmp_path, batch_size=128))
    assert (tmp_path / "digits" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_drawn_while_a_run_goes_on_and_do_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn = list[tuple[int, Any]]()

    def full_disk(history: list[dict[str, Any]], *details: Any) -> None:
        drawn.append((history[-1]["epoch"], details[3]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trainer_module, "curves", full_disk)
    monkeypatch.setattr(trainer_module, "DRAWN_EVERY", 0)
    monkeypatch.setattr(Tracker, "finish", lambda *_: None)
    report = convnext.train(short(tmp_path, epochs=3)).report
    assert drawn == [(1, None), (2, None), (3, {"epoch": 3, "loss": report.loss, "top1": report.top1})]
    assert capfd.readouterr().err.count("curves.png: No space left on device") == 3


def test_a_signal_in_a_validation_stops_it_and_it_is_done_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convnext.train(short(tmp_path / "whole"))
    predict = Trainer.predict

    run, steps = tmp_path / "digits", [line["step"] for line in read_metrics(whole.path)]
    for epoch, step in enumerate(steps, 1):

        def signal_before(trainer: Trainer, split: str, signals: StopSignals, at: int = step) -> Any:
            if trainer.state.step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return predict(trainer, split, signals)

        for _ in range(2):  # the second time in the validation that is done again
            with monkeypatch.context() as patch:
                patch.setattr(Trainer, "predict", signal_before)
                with pytest.raises(InterruptedRunError):
                    convnext.train(short(tmp_path), resume=True)
            state = json.loads((run / "checkpoints" / "last" / "training.json").read_text())
            assert state["unvalidated"]
            assert state["step"] == step
            assert len(read_metrics(run)) == epoch - 1
        if epoch == 1:  # killed when the validation is written down, and before it is saved
            with (run / "metrics.jsonl").open("a") as file:
                file.write((whole.path / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    convnext.train(short(tmp_path), resume=True)
    assert result(run) == result(whole.path)


def test_changed_images_are_noticed(small_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(small_folder / "test")
    settings = folder_settings(small_folder, tmp_path)
    run = convnext.train(settings)
    (small_folder / "train" / "0").joinpath("zz.png").write_bytes(
        next((small_folder / "train" / "1").iterdir()).read_bytes()
    )
    with pytest.raises(DataError, match=r"test images of .* have changed since its training"):
        convnext.evaluate(run.path)
    with pytest.raises(UserError, match=r"cannot go on|cannot be resumed"):
        convnext.train(settings, resume=True)
    before = (run.path / "test_report.json").read_text()
    convnext.evaluate(run.path, root=small_folder)
    assert "a name of its own" in capfd.readouterr().err
    assert (run.path / "test_report.json").read_text() == before
    assert (run.path / "test-on-images_report.json").exists()


def test_moved_images_are_the_same(small_folder: Path, tmp_path: Path) -> None:
    run = convnext.train(folder_settings(small_folder, tmp_path))
    moved = tmp_path / "moved"
    small_folder.rename(moved)
    assert convnext.evaluate(run.path, root=moved) == run.report


def test_odd_class_names(small_folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for old, new in (("0", "accuracy"), ("1", "a $b_{$"), ("2", "macro avg")):
            (small_folder / part / old).rename(small_folder / part / new)
    run = convnext.train(folder_settings(small_folder, tmp_path, name="$x_{$"))
    assert list(run.report.per_class) == ["a $b_{$", "accuracy", "macro avg"]
    assert (run.path / "test_confusion_matrix.png").exists()


def test_damaged_metrics_are_one_line(tmp_path: Path) -> None:
    run = convnext.train(short(tmp_path))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
        convnext.train(short(tmp_path), resume=True)


def test_hand_edited_settings_are_named_by_file(tmp_path: Path) -> None:
    run = convnext.train(short(tmp_path))
    path = run.path / "settings.json"
    path.write_text(path.read_text().replace('"epochs": 2', '"epochs": -1'))
    with pytest.raises(CheckpointError, match=r"settings\.json: epochs: input should be greater"):
        convnext.evaluate(run.path)
