"""Finished runs to compare: one that was trained, and what it would be with other predictions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from convnext.comparison.measured import Measured
from convnext.comparison.results import Repeat, Result
from convnext.evaluation.metrics import compute_report


def with_correct(run: Measured, right: Sequence[int]) -> Measured:
    """The run, had it these test images right and all others wrong."""
    targets = torch.from_numpy(run.targets)
    taken_for = (targets + 1) % len(run.info.classes)
    taken_for[list(right)] = targets[list(right)]
    logits = 4.0 * torch.nn.functional.one_hot(taken_for, len(run.info.classes))
    return replace(run, logits=logits, report=compute_report(logits, targets, run.info.classes))


def contender(name: str, run: Measured, accuracies: Sequence[float], **changes: Any) -> Result:
    """A contender whose seeds have these accuracies, on images drawn anew for each."""
    repeats = []
    for seed, accuracy in enumerate(accuracies):
        order = np.random.default_rng([seed, *name.encode()]).permutation(len(run.targets))
        changed = replace(with_correct(run, order[: round(accuracy * len(order))].tolist()), **changes)
        repeats.append(Repeat(seed, (changed,)))
    return Result(name, tuple(repeats))
