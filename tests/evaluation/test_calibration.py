"""Calibration, against direct loops, torchmetrics and LBFGS."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from convnext.errors import SettingsError
from convnext.evaluation.calibration import calibrate, expected_calibration_error, fit_temperature, reliability


def _looped(confidences: NDArray[np.float64], correct: NDArray[np.bool_], bins: int) -> float:
    """The expected calibration error as its definition reads."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [i for i, c in enumerate(confidences) if low < c <= high or (number == 0 and c == 0)]
        if inside:
            gap = sum(confidences[i] for i in inside) / len(inside) - sum(correct[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_error_is_that_of_its_definition(bins: int) -> None:
    generator = np.random.default_rng(0)
    confidences = np.append(generator.random(500) ** 0.3, [0, 1, 1, 0.5])
    correct = generator.random(504) < confidences**2
    assert expected_calibration_error(confidences, correct, bins) == pytest.approx(_looped(confidences, correct, bins))
    probabilities = np.stack([confidences, 1 - confidences], 1)
    by_class = expected_calibration_error(probabilities, correct, bins)
    assert by_class == pytest.approx(_looped(probabilities.max(1), correct, bins))


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_error_is_that_of_torchmetrics(scale: float, bins: int) -> None:
    logits, targets = _cases(scale)
    peer = multiclass_calibration_error(logits.softmax(1), targets, num_classes=5, n_bins=bins, norm="l1")
    ours = expected_calibration_error(logits.softmax(1).numpy(), (logits.argmax(1) == targets).numpy(), bins)
    assert ours == pytest.approx(peer.item(), abs=1e-5)  # the peer sums in float32


def test_known_answers() -> None:
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1
    assert expected_calibration_error([0.0], [False]) == 0
    assert expected_calibration_error([[1.0], [1.0]], [True, True]) == 0  # one class
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    bins = reliability([0.0, 0.05, 0.1, 0.95, 1.0], [0, 0, 1, 1, 1], bins=10)
    assert bins.counts.tolist() == [3, 0, 0, 0, 0, 0, 0, 0, 0, 2]  # an upper edge is of the bin below it
    assert bins.accuracy[[0, 9]] == pytest.approx([1 / 3, 1])
    assert np.isnan(bins.confidence[1:9]).all()


def _cases(scale: float, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are ``scale`` times those from whose softmax the targets are drawn."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 5, generator=generator)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 1e6])
def test_the_temperature_is_that_of_lbfgs_and_of_the_data(scale: float) -> None:
    logits, targets = _cases(scale)
    temperature = fit_temperature(logits, targets)
    start = logits.double() / scale
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    peer = torch.optim.LBFGS([inverse], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> float:
        peer.zero_grad()
        loss = F.cross_entropy(start * inverse, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    peer.step(closure)  # type: ignore[no-untyped-call]
    assert temperature == pytest.approx(scale / inverse.item(), rel=1e-3)
    assert temperature == pytest.approx(scale, rel=0.1)


def test_temperatures_at_the_edges() -> None:
    right = torch.eye(3) * 2
    assert 0 < fit_temperature(right, torch.arange(3)) < 0.1  # all right
    assert fit_temperature(-right, torch.arange(3)) > 100  # all wrong
    assert np.isfinite(fit_temperature(1e6 * torch.eye(3), torch.tensor([0, 1, 1])))
    assert np.isfinite(fit_temperature(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)))  # one class


def test_a_temperature_calibrates_other_images() -> None:
    logits, targets = _cases(3.0, 4000)
    calibration = calibrate(logits[:2000], targets[:2000], logits[2000:], targets[2000:])
    values = calibration.as_dict()
    assert values["temperature"] == pytest.approx(3, rel=0.1)
    assert values["ece_after"] < 0.05 < values["ece_before"]
    assert values["loss_after"] < values["loss_before"]
    assert values["fitted_on"] == 2000


def test_what_is_no_calibration() -> None:
    with pytest.raises(SettingsError, match="the softmax, not logits"):
        expected_calibration_error([2.0], [True])
    with pytest.raises(SettingsError, match="the softmax, not logits"):
        expected_calibration_error([float("nan")], [True])
    for confidences, correct in (([], []), ([0.5], [True, False])):
        with pytest.raises(SettingsError, match="for each image"):
            expected_calibration_error(confidences, correct)
    for logits in (torch.zeros(2, 3), torch.full((3, 3), torch.inf)):
        with pytest.raises(SettingsError, match="needs finite logits"):
            fit_temperature(logits, torch.zeros(3, dtype=torch.int64))
