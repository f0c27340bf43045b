"""Whether a model that is 80 % sure is right in 80 % of the cases, and the temperature that makes it so."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from convnext.errors import SettingsError

_TEMPERATURES = 1e-3, 1e3  # between which one is looked for, as multiples of the logits' standard deviation


@dataclass(frozen=True)
class Reliability:
    """Images by the probability of their predicted class, in bins of equal width; a bin has its upper edge, and the
    first also 0.

    Attributes:
        edges: ``(bins + 1,)`` from 0 to 1.
        counts: ``(bins,)`` images.
        confidence: ``(bins,)`` their mean probability; nan in an empty bin.
        accuracy: ``(bins,)`` fraction that is right; nan in an empty bin.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the bins' mean absolute distance of confidence and accuracy, weighted by
        their images."""
        distances = np.abs(self.confidence - self.accuracy)
        return float(np.nansum(distances * self.counts) / self.counts.sum())


def reliability(probabilities: ArrayLike, correct: ArrayLike, bins: int = 15) -> Reliability:
    """How often a model is right by how sure it is.

    Args:
        probabilities: ``(N, K)`` of the classes, or ``(N,)`` of the predicted one.
        correct: ``(N,)`` whether the predicted class is the true one.
        bins: of equal width.

    Raises:
        SettingsError: no images, arrays of other shapes, numbers that are no probabilities, or no bins.
    """
    chances, right = np.asarray(probabilities, np.float64), np.asarray(correct, bool)
    chances = chances.max(1) if chances.ndim == 2 and chances.size else chances
    if chances.shape != right.shape or chances.ndim != 1 or not chances.size or bins < 1:
        raise SettingsError(
            f"calibration: needs a probability and whether it is right for each image, and at least one bin; got "
            f"shapes {chances.shape} and {right.shape}, bins {bins}"
        )
    if not ((chances >= 0) & (chances <= 1)).all():
        raise SettingsError("calibration: probabilities must be between 0 and 1: give the softmax, not logits")
    edges = np.linspace(0, 1, bins + 1)
    where = np.clip(np.searchsorted(edges, chances, side="left") - 1, 0, bins - 1)
    counts = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):  # of empty bins
        confidence, accuracy = (np.bincount(where, each, minlength=bins) / counts for each in (chances, right))
    return Reliability(edges, counts, confidence, accuracy)


def expected_calibration_error(probabilities: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """The expected calibration error in ``bins`` bins of equal width (Guo et al. 2017), between 0 and 1; for the
    arguments and errors see `reliability`."""
    return reliability(probabilities, correct, bins).error


def fit_temperature(logits: Tensor | ArrayLike, targets: Tensor | ArrayLike) -> float:
    """The temperature T for which the softmax of ``logits / T`` has the least cross-entropy (Guo et al. 2017); it
    changes no prediction.

    Fit it on images that were not trained on, and measure on yet others.

    Args:
        logits: ``(N, K)``.
        targets: ``(N,)`` class indices.

    Returns:
        A number above 0: next to 0 where every image is right, for then no certainty is too great.

    Raises:
        SettingsError: no images, other numbers of logits and targets, or logits that are not finite.
    """
    from scipy.optimize import minimize_scalar

    scores, labels = torch.as_tensor(logits).double(), torch.as_tensor(targets)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels) or not scores.isfinite().all():
        raise SettingsError(
            f"calibration: needs finite logits (N, K) and targets (N,), got shapes {tuple(scores.shape)} and "
            f"{tuple(labels.shape)}"
        )
    unit = scores.std(correction=0).item() or 1.0

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(scores / np.exp(log_temperature), labels).item()

    # In 1/T the loss is convex, so in log T it has one minimum.
    bounds = np.log(unit) + np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, options={"xatol": 1e-5}).x))


@dataclass(frozen=True)
class Calibration:
    """A model's calibration on a split before and after its temperature, which was fitted on another.

    Attributes:
        temperature: that the logits are divided by.
        fitted_on: how many images it was fitted on.
        before: as the model is.
        after: with its logits divided by the temperature.
        loss_before: mean cross-entropy, in nats.
        loss_after: the same with the temperature.
    """

    temperature: float
    fitted_on: int
    before: Reliability
    after: Reliability
    loss_before: float
    loss_after: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: temperature, expected calibration errors and losses."""
        return {
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "ece_before": self.before.error,
            "ece_after": self.after.error,
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
        }


def calibrate(
    logits: Tensor, targets: Tensor, fitting_logits: Tensor, fitting_targets: Tensor, bins: int = 15
) -> Calibration:
    """The calibration on ``logits`` ``(N, K)`` and ``targets`` ``(N,)``, with a temperature fitted on those of other
    images."""
    temperature = fit_temperature(fitting_logits, fitting_targets)
    right = (logits.argmax(1) == targets).numpy()
    (before, loss_before), (after, loss_after) = (
        (reliability(scaled.softmax(1).numpy(), right, bins), F.cross_entropy(scaled, targets).item())
        for scaled in (logits.double(), logits.double() / temperature)
    )
    return Calibration(temperature, len(fitting_targets), before, after, loss_before, loss_after)
