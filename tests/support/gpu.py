"""Short runs on a GPU, for its tests."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import convnext
from convnext import recipe
from convnext.data.datasets.load import load_splits
from convnext.data.loading.loader import Batch
from convnext.devices import make_accelerator
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.resolve import resolve_settings
from convnext.training.trainer import Trainer

DEVICE = "cuda"
STEPS = 10  # of an epoch of `tiny`
RANDOM = {
    "ema_decay": 0.9,
    "gradient_accumulation": 2,
    "model.stochastic_depth": 0.2,
    "augment": {"mixup": 0.8, "cutmix": 1.0, "policy": "randaugment", "random_erasing": 0.25},
}


def tiny(output: Path, **changes: Any) -> convnext.RunSettings:
    """An epoch on the digits in float32, with nothing random that a device draws."""
    settings = recipe(
        "digits",
        epochs=1,
        batch_size=128,
        output=output,
        device=DEVICE,
        precision="fp32",
        ema_decay=None,
        model={"depths": (1, 1), "dims": (8, 16), "patch_size": 2},
        data={"workers": 0, "augment_on": "workers"},
        trackers=(),
        **{"optimizer.lr": 0.005, "optimizer.clip_norm": 1.0},
    )
    changed: convnext.RunSettings = settings.replace(**changes)
    return changed


class Recorded(Trainer):
    """A run that keeps the mean loss of each step."""

    losses: list[float]

    def step(self, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        loss_sum, images = self.state.loss_sum, self.state.images
        asked = super().step(batch, signals)
        self.catch_up()
        self.losses.append((self.state.loss_sum - loss_sum) / (self.state.images - images))
        return asked


def prepared(settings: convnext.RunSettings) -> Recorded:
    """A run that has not begun."""
    accelerator = make_accelerator(settings)
    resolved, splits = resolve_settings(settings, load_splits(settings.data), accelerator)
    return Recorded(resolved, splits, accelerator)


def fit(trainer: Recorded, folder: Path) -> list[float]:
    """Train to the end; gives the losses of the steps."""
    trainer.losses = []
    folder.mkdir(parents=True)
    trainer.open(folder)
    with StopSignals(folder) as signals, trainer.tracker:
        trainer.fit(signals)
    assert trainer.state.skipped_in_all == 0
    return trainer.losses


def losses(output: Path, **changes: Any) -> list[float]:
    return fit(prepared(tiny(output, **changes)), output / "run")


def stopped_at(step: int, settings: convnext.RunSettings) -> None:
    """Train up to that step, and stop there as a signal does."""
    train_step = Trainer.step

    def step_with_signal(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if trainer.state.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer, batch, signals)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step_with_signal)
        with pytest.raises(InterruptedRunError):
            convnext.train(settings)
