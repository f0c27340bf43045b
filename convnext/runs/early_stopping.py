"""When a run stops because its validation gets no better.

That is a function of its settings and of what was measured so far, so a run that is interrupted and goes on stops after
the same epoch."""

import math
from collections.abc import Sequence
from typing import Any

from convnext.config import RunSettings


def is_better(value: float, best: float | None, settings: RunSettings) -> bool:
    """Whether a value of the validation metric that the settings name improves on the best one, None before the first;
    no number never does."""
    if math.isnan(value):
        return False
    return best is None or (value < best if settings.monitor == "loss" else value > best)


def is_over(epoch: int, best_epoch: int, settings: RunSettings) -> bool:
    """Whether a run stops after ``epoch``, with the best validation in ``best_epoch``, 0 for none: at a validation,
    once ``patience`` epochs in a row brought nothing better."""
    return (
        settings.patience is not None
        and epoch > 0
        and epoch % settings.eval_every == 0
        and epoch - best_epoch >= settings.patience
    )


def stopped_early(history: Sequence[dict[str, Any]], settings: RunSettings) -> bool:
    """Whether the run with these lines of ``metrics.jsonl`` has come to its end in that way."""
    best, best_epoch = None, 0
    for line in history:
        value = line.get(f"val_{settings.monitor}")
        if value is not None and is_better(value, best, settings):
            best, best_epoch = value, line["epoch"]
    return is_over(history[-1]["epoch"] if history else 0, best_epoch, settings)
