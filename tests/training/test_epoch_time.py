"""The time of an epoch is that of its steps, whatever is evaluated and saved between them."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import convnext
from convnext.data.loading.loader import Batch
from convnext.runs.folder import read_metrics
from convnext.training import trainer as trainer_module
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.trainer import Trainer

STEPS = 10  # an epoch


class Clock:
    """A second a step, and a hundred an evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: tuple[str, int] = ("", 0)) -> None:
        self.now = 0.0
        step, predict = Trainer.step, Trainer.predict

        def timed_step(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
            self.now += 1
            return step(trainer, batch, signals)

        def timed_predict(trainer: Trainer, split: str, signals: StopSignals) -> Any:
            self.now += 100
            if (split, trainer.state.step) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return predict(trainer, split, signals)

        monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(Trainer, "step", timed_step)
        monkeypatch.setattr(Trainer, "predict", timed_predict)


def train(output: Path, **changes: Any) -> convnext.Run:
    tiny: dict[str, Any] = {"model.depths": (1, 1), "model.dims": (4, 8), "trackers": ()}
    changes = tiny | {"epochs": 3, "batch_size": 1293 // STEPS, "output": output} | changes
    return convnext.train("digits", **changes)


def times(run: Path) -> list[tuple[float, float]]:
    return [(line["seconds"], round(line["images_per_second"])) for line in read_metrics(run)]


@pytest.mark.parametrize("changes", [{}, {"save_every_steps": 3}, {"save_every_epochs": 2, "eval_every": 2}])
def test_an_epochs_time_is_that_of_its_steps(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    assert times(train(tmp_path, **changes).path) == [(STEPS, 129)] * 3


def test_a_validation_that_was_stopped_counts_for_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Clock(patch, stop_at=("val", 2 * STEPS))
        with pytest.raises(InterruptedRunError):
            train(tmp_path)
    Clock(monkeypatch)
    assert times(train(tmp_path, resume=True).path) == [(STEPS, 129)] * 3
