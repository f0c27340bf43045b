"""A training in this process that is stopped by a signal."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from convnext.data.loading.loader import Batch
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.trainer import Trainer


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """SIGTERM comes as the training in the context begins the step after so many, which ends it."""
    take_step = Trainer.step

    def signal_before(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(trainer, batch, signals)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", signal_before)
        with pytest.raises(InterruptedRunError):
            yield
