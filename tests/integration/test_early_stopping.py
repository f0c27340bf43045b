"""Runs that stop because they get no better: where they stop, what they are used by, and how they go on."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import convnext
from convnext.cli import main
from convnext.runs import checkpoint
from convnext.runs.folder import read_metrics
from convnext.runs.history import summarise
from tests.support.killing import STEPS_PER_EPOCH, TINY, Point, last_line, result, run, steps

# It learns so slowly that no epoch after the first is better.
STUCK = (*TINY, "--epochs", "8", "--optimizer.lr", "1e-7", "--data.sampler", "balanced", "--save-every-epochs", "3")
THREE = (*STUCK, "--patience", "3")
RUN = Path("runs") / "digits"
STOP = 4 * STEPS_PER_EPOCH
LINE = "stopped early, after epoch 4 of 8: validation top-1 was best in epoch 1, "


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that stopped early, which nothing disturbed, and what it said."""
    folder = tmp_path_factory.mktemp("early")
    ended = run(THREE, folder)
    assert ended.status == 0, ended.text
    return folder, ended.text


@pytest.fixture
def stopped(stopped_run: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of its folder."""
    return Path(shutil.copytree(stopped_run[0], tmp_path / "copy", symlinks=True))


def weights(run_folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "checkpoints" / name / "model.safetensors")


def test_it_stops_says_why_and_is_tested_by_its_best(stopped_run: tuple[Path, str]) -> None:
    folder, said = stopped_run
    assert said.count(LINE) == 1
    assert "(best weights)" in said
    assert [line["epoch"] for line in read_metrics(folder / RUN)] == [1, 2, 3, 4]
    assert steps(folder / RUN) == [STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH, STOP]
    assert checkpoint.find(folder / RUN).resolve().name == f"step-{STEPS_PER_EPOCH:08d}"
    assert summarise(folder / RUN).status == "finished"


def test_what_uses_the_run_uses_its_best(stopped: Path) -> None:
    written = json.loads((stopped / RUN / "test_report.json").read_text())
    assert convnext.evaluate(stopped / RUN).loss == pytest.approx(written["loss"], rel=1e-9)
    assert convnext.evaluate(stopped / RUN, checkpoint="best").loss == pytest.approx(written["loss"], rel=1e-9)
    assert not (stopped / RUN / "test-best_report.json").exists()
    last = convnext.evaluate(stopped / RUN, checkpoint="last")
    assert json.loads((stopped / RUN / "test-last_report.json").read_text())["loss"] == last.loss
    best, other = weights(stopped / RUN, "best"), weights(stopped / RUN, "last")
    used = convnext.Predictor.load(stopped / RUN).model.state_dict()
    assert all(torch.equal(used[name].cpu(), tensor) for name, tensor in best.items())
    assert not all(torch.equal(tensor, best[name]) for name, tensor in other.items())


@pytest.mark.parametrize(
    "points",
    [
        # In an epoch's middle; before the last epoch's numbers are written; in its save.
        (Point(13), Point(STOP, disk=1), Point(STOP, disk=6)),
        (Point(STOP, signal=signal.SIGTERM),),  # which stops the validation that would end the run
    ],
    ids=["killed", "signal"],
)
def test_killed_and_resumed_it_stops_where_it_would_have(
    points: tuple[Point, ...], stopped_run: tuple[Path, str], tmp_path: Path
) -> None:
    for point in points:
        ended = run([*THREE, "--save-every-steps", "4", "--resume"], tmp_path, point)
        assert ended.status in (-signal.SIGKILL, 128 + signal.SIGTERM), ended.text
    ended = run([*THREE, "--resume"], tmp_path)
    assert ended.status == 0, ended.text
    assert LINE in ended.text
    assert result(tmp_path / RUN) == result(stopped_run[0] / RUN)


def test_resumed_it_is_finished_and_with_more_patience_goes_on(stopped: Path, tmp_path: Path) -> None:
    before = result(stopped / RUN)
    ended = run([*THREE, "--resume"], stopped)
    assert ended.status == 0
    assert LINE in ended.text
    assert "epoch 5/8" not in ended.text
    assert result(stopped / RUN) == before
    more = (*STUCK, "--patience", "5")
    ended = run([*more, "--resume"], stopped)
    assert "patience was 3, now 5" in ended.text
    assert "stopped early, after epoch 6 of 8" in ended.text
    assert run(more, tmp_path / "at once").status == 0
    assert result(stopped / RUN) == result(tmp_path / "at once" / RUN)
    ended = run([*STUCK, "--resume"], stopped)  # without any, to the end
    assert "stopped early" not in ended.text
    assert "(last weights)" in ended.text
    assert read_metrics(stopped / RUN)[-1]["epoch"] == 8


def test_a_finished_run_is_not_gone_on_with_before_an_interrupted_one(stopped: Path) -> None:
    assert run([*THREE, "--patience", "2"], stopped, Point(5)).status == -signal.SIGKILL
    assert run([*THREE, "--patience", "2", "--resume"], stopped).status == 0
    assert {path.name for path in (stopped / "runs").iterdir()} == {"digits", "digits-2"}
    assert read_metrics(stopped / "runs" / "digits-2")[-1]["epoch"] == 3


def test_only_validations_count(tmp_path: Path) -> None:
    ended = run([*THREE, "--eval-every", "2"], tmp_path)
    assert "stopped early, after epoch 6 of 8: validation top-1 was best in epoch 2, " in ended.text


@pytest.mark.parametrize("monitor", ["loss", "macro_f1"])
def test_the_metric_is_a_setting(monitor: str, tmp_path: Path) -> None:
    assert run([*TINY, "--epochs", "3", "--monitor", monitor], tmp_path).status == 0
    history = read_metrics(tmp_path / RUN)
    chosen: Any = min if monitor == "loss" else max
    best = chosen(history, key=lambda line: line[f"val_{monitor}"])
    state = checkpoint.read_state(tmp_path / RUN / "checkpoints" / "best")
    assert (state.step, state.best_value) == (best["step"], best[f"val_{monitor}"])


def test_without_a_validation_split_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*TINY, "--patience", "3", "--data.val-fraction", "0"]
    assert last_line(run(args, tmp_path)).startswith("convnext: patience waits for a better validation")
    assert not (tmp_path / "runs").exists()
    assert main([*args, "--dry-run"]) == 2
    assert "there is no validation split" in capsys.readouterr().err
