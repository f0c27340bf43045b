"""What a run says of the numbers that others and we reached with its recipe."""

from pathlib import Path
from typing import Any

import pytest

from convnext import recipes
from convnext.cli import main

TINY = (
    *("--model.depths", "1", "1", "--model.dims", "4", "8", "--model.patch-size", "1"),
    *("--epochs", "1", "--data.workers", "0", "--batch-size", "16", "--trackers"),
)


def summary(recipe: str, options: list[str], output: Path, capsys: Any) -> list[str]:
    args = ["train", recipe, *TINY, "--data.image-size", "8", "--data.start-size", "None", "--output", str(output)]
    assert main([*args, *options]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Measured", "Published"))]


@pytest.mark.parametrize("recipe", ["cifar10", "cifar10-64px"])
def test_numbers_on_other_images_are_not_compared(
    recipe: str, small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = recipes.get(recipe)
    lines = summary(recipe, ["--data.name", "folder", "--data.root", str(small_folder)], tmp_path / "runs", capsys)
    assert len(lines) == len(known.measured) + (known.published is not None)
    for line in lines:
        assert line.endswith("; on CIFAR-10, and not comparable to this run")
        assert "above" not in line
        assert "below" not in line


def test_numbers_on_other_folds_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = summary("digits", ["--data.folds", "3"], tmp_path / "runs", capsys)
    assert line.endswith("with its own test images, and not comparable to this run")
    (line,) = summary("digits", [], tmp_path / "runs", capsys)
    assert line == f"Measured  {recipes.get('digits').measured[0]}"
