"""Each example runs, and learns what it is to learn."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import convnext
from convnext.errors import UserError

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_minimal_training_learns_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("minimal")["main"](6) > 0.85
    assert "macro-F1" in capsys.readouterr().out


def test_a_module_and_data_of_ones_own(tmp_path: Path) -> None:
    example = load("own_data")
    assert example["main"](tmp_path) > 0.8
    run = tmp_path / "own"
    data = {"train": example["Digits"](0, 1400), "test": example["Digits"](1400, 1797)}
    again = convnext.evaluate(run, model=example["make_model"](), data=data, workers=0)
    assert again.count == 397
    assert convnext.evaluate(run, split="all", model=example["make_model"](), data=data, workers=0).count == 1797
    with pytest.raises(UserError, match="a module of a program's own"):
        convnext.evaluate(run, data=data)
    with pytest.raises(UserError, match="data sets of a program's own"):
        convnext.evaluate(run, model=example["make_model"]())


def test_every_example_is_run_by_a_test() -> None:
    run_elsewhere = {"detection", "own_model"}  # tests/models
    tested = {"minimal", "own_data"} | run_elsewhere
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    assert "examples" not in sys.modules
