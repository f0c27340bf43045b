"""What a run says of itself: lines in a log at least each minute, a bar on a terminal, and its time."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from torch import device

from convnext import RunSettings, recipe
from convnext.data.datasets.load import load_splits
from convnext.data.progress import duration, tracked
from convnext.models import registry
from convnext.runs.checkpoint import TrainingState
from convnext.training.memory import settle_gradient_accumulation
from convnext.training.progress import Display, announcement, epoch_line


def ticking(step: float) -> Iterator[float]:
    """A clock that goes on by ``step`` seconds each time that it is asked."""
    now = 0.0
    while True:
        yield now
        now += step


def lines_of_run(seconds_a_step: float, capsys: pytest.CaptureFixture[str], shown: bool = True) -> list[str]:
    """What is said in an epoch of 100 steps, of 2."""
    state = TrainingState(settings=recipe("digits"), versions={}, fingerprints={})
    with Display(200, 0, shown, ticking(seconds_a_step).__next__) as display:
        for step in range(1, 101):
            state.step, state.images, state.loss_sum, state.correct = step, 64 * step, 32.0 * step, 16 * step
            display.update(state, steps_per_epoch=100, epochs=2, images=64, lr=1e-3)
    return capsys.readouterr().err.splitlines()


def test_a_log_has_a_line_each_minute_within_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of_run(6.0, capsys)
    assert len(lines) == 10
    assert lines[0] == ("epoch 1/2, step 10/100: loss 0.500, top-1 25.00 %, 11 images/s, lr 1.00e-03, 0:19:00 left")
    assert lines[-1].endswith("0:10:00 left")
    assert len(lines_of_run(0.5, capsys)) == 0
    assert len(lines_of_run(90.0, capsys)) == 100
    assert lines_of_run(90.0, capsys, shown=False) == []


def test_other_long_work_has_a_line_each_minute(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(100), 100, "evaluating", clock=ticking(6.0).__next__)) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluating: 9 %, 0:10:07 left"
    assert len(lines) == 10
    list(tracked(range(9), 9, "evaluating", clock=ticking(6.0).__next__))
    list(tracked(range(100), 100, "evaluating", shown=False, clock=ticking(60.0).__next__))
    assert capsys.readouterr().err == ""


def test_the_bar_shows_all_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    state = TrainingState(settings=recipe("digits"), versions={}, fingerprints={})
    with Display(300_000, 0, clock=ticking(3.0).__next__) as display:
        state.step, state.images, state.loss_sum = 119_999, 1000, 6912.3
        display.update(state, steps_per_epoch=1000, epochs=300, images=123_456, lr=1e-3)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n")
    line = next(line for line in text.splitlines() if "loss" in line)
    assert re.fullmatch(
        r"epoch 120/300 [━╸╺]{5,} loss 6\.912  top-1 0\.00 %  41,152 images/s 4\.5 s left", line.strip()
    )
    assert len(line) <= 80


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.04, 59.94, 60, 3599.6, 90_061)] == [
        *("0.0 s", "59.9 s", "0:01:00"),
        *("1:00:00", "25:01:01"),
    ]


def test_the_epochs_line_has_its_time() -> None:
    numbers = {"train_loss": 1.0, "train_top1": 0.5, "lr": 1e-3, "images_per_second": 10.0}
    assert epoch_line({"epoch": 1, "seconds": 83.0} | numbers, 2).endswith("lr 1.00e-03, 10 images/s, 0:01:23")


def test_an_automatic_batch_says_what_it_chose(capsys: pytest.CaptureFixture[str]) -> None:
    settings = automatic()
    model = registry.build(settings.model, 10)
    settled = settle_gradient_accumulation(settings, model, Accelerator(cpu=True))
    assert settled.gradient_accumulation == 1
    assert capsys.readouterr().err == "memory holds the batch of 64 images in one piece: gradient_accumulation 1\n"


def automatic() -> RunSettings:
    return recipe("digits", gradient_accumulation="auto", **{"model.in_channels": 1})


def test_torchrun_says_things_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")
    assert lines_of_run(90.0, capsys) == []


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        ("muon", "Muon's own peak learning rate 0.085 = 0.17 x batch 32 / reference 64 is a fraction of its weights"),
        ("adamw", "for Muon alone, so without effect on adamw: optimizer.muon_filters, optimizer.muon_relative_lr"),
    ],
)
def test_what_is_of_muon_alone_is_said(optimizer: str, line: str) -> None:
    muon = {"optimizer.name": optimizer, "optimizer.muon_filters": True, "optimizer.muon_relative_lr": 0.17}
    settings = recipe("digits", batch_size=32, **muon)
    splits = load_splits(settings.data)
    model = registry.build(settings.model, 10)
    assert line in announcement(settings, splits, model, device("cpu"), Path("runs"))
    plain = announcement(recipe("digits"), splits, model, device("cpu"), Path("runs"))
    assert not [line for line in plain if "Muon" in line]
