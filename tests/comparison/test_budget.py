"""Epochs that fit into a budget."""

import pytest

from convnext import recipe
from convnext.comparison.budget import Budget, Pace, fitted, measure_pace
from convnext.errors import SettingsError

PACE = Pace(precision="fp32", steps=10, small_step=0.1, full_step=0.5, start=0.0, evaluation=0.001, val=100, test=1000)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("90s", 90, "seconds"), ("30min", 1800, "seconds"), ("1.5 h", 5400, "seconds"), ("2e15flop", 2e15, "flops")],
)
def test_budgets(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["30", "min", "-3min", "0h", "3 days", "1.2.3s", ""])
def test_no_budgets(text: str) -> None:
    with pytest.raises(SettingsError, match="write a time or operations"):
        Budget.parse(text)


def test_a_training_takes_its_steps_and_its_evaluations() -> None:
    settings = recipe("digits", epochs=4, eval_every=2)
    assert PACE.seconds(settings) == pytest.approx(4 * 10 * 0.5 + 2 * 0.1 + 1.0)
    starting = PACE.model_copy(update={"start": 3.0})
    assert starting.seconds(settings) == pytest.approx(PACE.seconds(settings) + 3 * 3.0)
    assert starting.model_copy(update={"val": 0}).seconds(settings) == pytest.approx(20 + 3 + 1)


def test_smaller_images_take_less() -> None:
    # Epochs of 8, 10, 12 and 16 px: between 0.1 s at 64 pixels and 0.5 s at 256.
    settings = recipe("digits", epochs=4, **{"data.image_size": 16, "data.start_size": 8, "data.full_size_from": 0.7})
    steps = [0.1 + 0.4 * (side**2 - 64) / 192 for side in (8, 10, 12, 16)]
    assert PACE.seconds(settings) == pytest.approx(10 * sum(steps) + 4 * 0.1 + 1.0)


def test_as_many_epochs_as_fit_and_a_warm_up_of_as_large_a_fraction() -> None:
    settings = recipe("digits", epochs=40, **{"optimizer.warmup_epochs": 4})
    chosen = fitted(settings, 52.0, PACE.seconds)
    assert chosen.epochs == 10  # of 5.1 s, and a second for the test
    assert chosen.warmup_epochs == 1.0
    assert PACE.seconds(chosen) <= 52.0 < PACE.seconds(chosen.replace(epochs=11))
    assert fitted(settings, 3.0, PACE.seconds).epochs == 1  # though it takes longer
    assert fitted(settings, 52.0, PACE.seconds, keep_warmup=True).optimizer.warmup_epochs == 4


def test_the_pace_is_that_of_real_steps() -> None:
    changes = {"model.depths": (1, 1), "model.dims": (4, 8), "data.workers": 0, "data.start_size": 4, "batch_size": 128}
    pace = measure_pace(recipe("digits", **changes), 0.1)
    assert (pace.steps, pace.val, pace.test, pace.precision) == (10, 144, 360, "fp32")
    assert min(pace.small_step, pace.full_step, pace.evaluation) > 0
