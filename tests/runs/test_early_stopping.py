"""The rule by which a run stops early."""

from typing import Any

import pytest

from convnext import recipe
from convnext.runs.early_stopping import is_better, is_over, stopped_early

NAN = float("nan")


def lines(monitor: str, *values: float | None) -> list[dict[str, Any]]:
    """An epoch each; None for one without a validation."""
    return [
        {"epoch": epoch, "step": epoch} | ({} if value is None else {f"val_{monitor}": value})
        for epoch, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("monitor", "best", "better", "worse"),
    [("top1", 0.8, 0.9, 0.7), ("macro_f1", 0.8, 0.9, 0.7), ("loss", 0.8, 0.7, 0.9), ("loss", float("inf"), 9.0, NAN)],
)
def test_what_is_better(monitor: str, best: float, better: float, worse: float) -> None:
    settings = recipe("digits", monitor=monitor)
    assert is_better(better, best, settings)
    assert not is_better(worse, best, settings)
    assert not is_better(best, best, settings)
    assert is_better(best, None, settings)
    assert not is_better(NAN, None, settings)


@pytest.mark.parametrize(("patience", "eval_every", "stops_after"), [(3, 1, 5), (1, 1, 3), (3, 2, 6), (5, 4, 8)])
def test_it_stops_at_the_first_validation_after_so_many_epochs(
    patience: int, eval_every: int, stops_after: int
) -> None:
    settings = recipe("digits", patience=patience, eval_every=eval_every)
    assert next(epoch for epoch in range(2, 40) if is_over(epoch, 2, settings)) == stops_after


def test_nothing_stops_without_patience_or_before_the_first_epoch() -> None:
    assert not any(is_over(epoch, 0, recipe("digits")) for epoch in range(100))
    assert not is_over(0, 0, recipe("digits", patience=1))


@pytest.mark.parametrize(
    ("monitor", "values", "stopped"),
    [
        ("loss", (3.0, 2.0, 2.5, 2.4), True),
        ("loss", (3.0, 2.0, 2.5, 1.9), False),
        ("loss", (NAN, NAN), True),
        ("top1", (0.5, 0.6, 0.6, 0.55), True),
        ("top1", (0.5, 0.6, 0.6), False),
        ("top1", (0.5, 0.6, 0.6, None), False),
        ("top1", (), False),
    ],
)
def test_the_lines_of_a_run_tell(monitor: str, values: tuple[float | None, ...], stopped: bool) -> None:
    settings = recipe("digits", patience=2, monitor=monitor, eval_every=3 if None in values else 1)
    assert stopped_early(lines(monitor, *values), settings) == stopped
    assert not stopped_early(lines(monitor, *values), settings.replace(patience=None))
