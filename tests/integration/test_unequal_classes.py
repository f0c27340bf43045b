"""Classes of very different size: what the commands say of them, and what can be done."""

import json
import shutil
from pathlib import Path

import pytest

from convnext.cli import main

SMALL = ["--epochs", "1", "--trackers", "--model.depths", "1", "1", "--model.dims", "8", "16", "--data.workers", "0"]


@pytest.fixture
def unequal(digits_images: Path, tmp_path: Path) -> Path:
    """Three classes with 60, 12 and 5 training images, and 5 test images each."""
    root = tmp_path / "images"
    for split, counts in (("train", (60, 12, 5)), ("test", (5, 5, 5))):
        for name, count in zip("012", counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for path in sorted((digits_images / split / name).iterdir())[:count]:
                shutil.copy(path, root / split / name)
    return root


def test_what_can_be_done_is_said(unequal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advice = "--data.sampler balanced or --loss.class-weights balanced"
    main(["datasets", "check", str(unequal)])
    assert f"0 has 60 training images, 2 5; train with {advice}" in capsys.readouterr().out
    train = ["train", "folder", "--data.root", str(unequal), "--data.val-fraction", "0", *SMALL]
    sizes = "classes have 5 (2) to 60 (0) training images"
    for options, said in (
        ([], f"{sizes}: {advice} makes them count alike"),
        (["--loss.class-weights", "balanced"], f"{sizes}; their weights in the loss: 5.13 and 0.428"),
        (["--loss.class-weights", "1", "1", "2"], f"{sizes}; their weights in the loss: 1.88 and 0.939"),
        (["--data.sampler", "balanced"], f"{sizes}; each class is drawn equally often"),
    ):
        assert main([*train, *options, "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert said in out
        assert (advice in out) == (not options)
    assert main([*train, "--loss.class-weights", "1", "2", "--output", str(tmp_path / "runs")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convnext: ")]
    assert line.startswith("convnext: loss.class_weights has 2 numbers, and the data 3 classes")
    assert not (tmp_path / "runs").exists()


def test_equal_classes_are_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *SMALL, "--dry-run"]) == 0
    assert "classes have" not in capsys.readouterr().out


def test_a_run_keeps_what_was_asked_for(unequal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "folder", "--data.root", str(unequal), *SMALL, "--output", str(tmp_path)]
    assert main([*train, "--name", "drawn", "--data.sampler", "balanced"]) == 0
    assert main([*train, "--name", "weighted", "--loss.class-weights", "1", "2", "3.5"]) == 0
    drawn, weighted = (json.loads((tmp_path / name / "settings.json").read_text()) for name in ("drawn", "weighted"))
    assert (drawn["data"]["sampler"], drawn["loss"]["class_weights"]) == ("balanced", "none")
    assert (weighted["data"]["sampler"], weighted["loss"]["class_weights"]) == ("shuffle", [1.0, 2.0, 3.5])
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "data.sampler=balanced" in out
    assert "loss.class_weights=1.0,2.0,3.5" in out
    assert main([*train, "--name", "drawn", "--resume"]) == 2
    assert "data.sampler was balanced, now shuffle" in capsys.readouterr().err
