"""Settings on their way from a file and the command line to a run: --settings, --dry-run, and what counts as given."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import convnext
from convnext.cli import main
from convnext.training import gradients

SMALL = ["--epochs", "1", "--trackers", "--model.depths", "1", "1", "--model.dims", "8", "16", "--data.workers", "0"]


def settings_of(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "settings.json").read_text())
    return values


def test_a_runs_settings_are_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--optimizer.lr", "0.003", "--model.patch-size", "2", "--data.no-strict", "--name", "first"]
    assert main(["train", "digits", *SMALL, *changes, "--output", str(tmp_path / "a")]) == 0
    first = settings_of(tmp_path / "a" / "first")
    file = str(tmp_path / "a" / "first" / "settings.json")
    # The recipe is the file's; a folder of a run will do; what is given beside it wins.
    assert main(["train", "--settings", str(tmp_path / "a" / "first"), "--output", str(tmp_path / "b")]) == 0
    assert main(["train", "digits", f"--settings={file}", "--seed", "3", "--output", str(tmp_path / "c")]) == 0
    same, other = settings_of(tmp_path / "b" / "first"), settings_of(tmp_path / "c" / "first")
    assert same == first | {"output": str(tmp_path / "b")}
    assert other == first | {"output": str(tmp_path / "c"), "seed": 3}
    weights = [tmp_path / run / "first" / "checkpoints" / "last" / "model.safetensors" for run in "abc"]
    assert weights[0].read_bytes() == weights[1].read_bytes() != weights[2].read_bytes()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"optimizer": {"lrr": 1}}', "no setting is called optimizer.lrr: did you mean optimizer.lr"),
        ('{"model": {"expansion": 99}}', "model.mlp_ratio: input should be less than or equal to 16"),
        ("{", "cannot read"),
        (None, "it is not there"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_path(
    content: str | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "part.json"
    if content is not None:
        file.write_text(content)
    assert main(["train", "digits", "--settings", str(file), "--output", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert complaint in line
    assert not (tmp_path / "runs").exists()


def test_a_part_of_a_file_counts_as_given(tmp_path: Path, digits_images: Path) -> None:
    file = tmp_path / "part.json"
    file.write_text(json.dumps({"data": {"image_size": 16}, "epochs": 1, "augment": {"erasing": 0.5}}))
    args = ["train", "folder", "--data.root", str(digits_images), "--settings", str(file), *SMALL]
    assert main([*args, "--output", str(tmp_path)]) == 0
    values = settings_of(tmp_path / "folder")
    assert values["data"]["image_size"] == 16  # the recipe would have chosen 8
    assert values["augment"]["random_erasing"] == 0.5


def test_a_value_equal_to_the_recipes_is_insisted_on(digits_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    default = convnext.recipe("folder").data.image_size
    args = ["train", "folder", "--data.root", str(digits_images), "--dry-run"]
    for options in ([], ["--data.image-size", str(default), "--model.patch-size=4", "--batch-size", "16", *SMALL]):
        assert main([*args, *options]) == 0
        out = capsys.readouterr().out
        values = json.loads(out[: out.rindex("\n}") + 2])
        assert values["data"]["image_size"] == (default if options else 8)


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", "digits", *SMALL, "--data.cache", "disk", "--output", str(tmp_path / "runs")]
    assert main([*args, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[: out.rindex("\n}") + 2])["model"]["in_channels"] == 1
    assert "1,293 training, 144 validation, 360 test images of 10 classes at 8 px" in out
    assert "20 steps of" in out
    assert "nothing was written" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_splits_the_batch_as_training_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = []
    backward = gradients.backward

    def noted(accelerator: Any, model: Any, settings: Any, *rest: Any) -> Any:
        counts.append(settings.gradient_accumulation)
        return backward(accelerator, model, settings, *rest)

    monkeypatch.setattr(gradients, "backward", noted)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=300_000))
    args = ["train", "digits", *SMALL, "--data.augment-on", "workers", "--output", str(tmp_path / "runs"), "--dry-run"]
    assert main([*args, "--gradient-accumulation", "2"]) == 0
    assert set(counts) == {2}
    counts.clear()
    capsys.readouterr()
    assert main([*args, "--gradient-accumulation", "auto"]) == 0
    (count,) = set(counts)
    assert 2 < count < 64
    out = capsys.readouterr().out
    assert json.loads(out[: out.rindex("\n}") + 2])["gradient_accumulation"] == count
    assert f"x batch 64 in {count} parts / " in out

    def too_large(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gradients, "backward", too_large)
    assert main(args) == 2
    assert "memory ran out: set --checkpoint-activations" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_fetches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cifar10", "--data.root", str(tmp_path / "data"), "--dry-run"]) == 2
    assert "CIFAR-10 is not there yet, and --dry-run fetches nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
