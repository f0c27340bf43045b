"""More than one number of a model: its calibration, other sizes, corrupted images, and where it is sure and wrong."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from convnext.data.sources import ImageSource, JoinedSource
from convnext.errors import SettingsError, reason
from convnext.evaluation.calibration import Calibration, calibrate
from convnext.evaluation.corruptions import SEVERITIES, CorruptedSource
from convnext.evaluation.evaluator import SplitLogits, Subject
from convnext.evaluation.metrics import most_confident_mistakes, ranked
from convnext.output import say
from convnext.plots.calibration import reliability_diagram
from convnext.storage.files import write_text


def calibration_of(subject: Subject, predictions: SplitLogits) -> Calibration:
    """The calibration on the subject's images, before and after a temperature fitted on its validation split; writes
    ``<stem>_calibration.json`` and ``<stem>_reliability.png`` beside its report.

    Raises:
        UserError: as of `check_calibration`.
    """
    fitted = subject.logits(check_calibration(subject), subject.info)
    calibration = calibrate(predictions.logits, predictions.targets, fitted.logits, fitted.targets)
    write_text(subject.folder / f"{subject.stem}_calibration.json", json.dumps(calibration.as_dict(), indent=2))
    bins = {"as it is": calibration.before, f"temperature {calibration.temperature:.3g}": calibration.after}
    panels = {f"{name}: ECE {100 * each.error:.2f} %": (each.accuracy, each.counts) for name, each in bins.items()}
    reliability_diagram(calibration.before.edges, panels, subject.folder / f"{subject.stem}_reliability.png")
    return calibration


def check_calibration(subject: Subject) -> ImageSource:
    """The images that the subject's temperature is fitted on.

    Raises:
        DataError: it has no validation split.
        SettingsError: the images to evaluate are those of the validation split, or have them among them.
    """
    fitting = subject.split("val")
    joined = subject.source.sources if isinstance(subject.source, JoinedSource) else ()
    if fitting.fingerprint() in {source.fingerprint() for source in (subject.source, *joined)}:
        alone = fitting.fingerprint() == subject.split("test").fingerprint()
        remedy = "train with a data.val_fraction, which this run has not" if alone else "choose --split test"
        raise SettingsError(
            f"--calibration fits the temperature on the validation split, so that it cannot be measured there: {remedy}"
        )
    return fitting


def accuracy_by_size(subject: Subject, sizes: Sequence[int], limit: int | None = None) -> dict[int, float]:
    """Top-1 accuracy where the model is given larger or smaller images than usual, by their side in pixels; writes
    ``<stem>_sizes.json`` beside the report.

    Args:
        subject: what to evaluate.
        sizes: in pixels.
        limit: of the images, this many, spread evenly; None for all.

    Raises:
        SettingsError: as of `check_sizes`; or the model is too small for a size.
    """
    check_sizes(subject, sizes)
    source, by_size = _some(subject.source, limit), {}
    for size in sizes:
        try:
            predictions = subject.logits(source, subject.info.model_copy(update={"image_size": size}))
        except (AssertionError, RuntimeError, ValueError) as error:  # of whatever class the model's library has
            raise SettingsError(f"--sizes: the model cannot take {size} px ({reason(error)}): leave it out") from None
        by_size[size] = _accuracy(predictions)
    write_text(subject.folder / f"{subject.stem}_sizes.json", json.dumps(by_size, indent=2))
    return by_size


def check_sizes(subject: Subject, sizes: Sequence[int]) -> None:
    """Refuse, with a SettingsError, sides that are none, and a model or file that takes one size alone."""
    if not subject.flexible:
        raise SettingsError(f"--sizes: {subject.path} takes images of one size here: evaluate its run, on PyTorch")
    if min(sizes, default=0) < 1:
        raise SettingsError(f"--sizes: needs sides of 1 pixel or more, got {' '.join(map(str, sizes)) or 'none'}")


def accuracy_by_corruption(subject: Subject, names: Sequence[str], limit: int | None = None) -> dict[str, list[float]]:
    """Top-1 accuracy on corrupted images, by the corruption's name, at each severity; writes
    ``<stem>_corruptions.json`` beside the report.

    Args:
        subject: what to evaluate.
        names: of `convnext.evaluation.corruptions`.
        limit: of the images, this many, spread evenly; None for all.

    Raises:
        SettingsError: as of `check_corruptions`.
    """
    check_corruptions(subject)
    info, source = subject.info, _some(subject.source, limit)
    cropped = info.model_copy(update={"center_crop": 1.0})
    accuracies: dict[str, list[float]] = {}
    for name in names:
        for severity in SEVERITIES:
            corrupted = CorruptedSource(source, name, severity, info.image_size, info.center_crop)
            accuracies.setdefault(name, []).append(_accuracy(subject.logits(corrupted, cropped)))
        say(f"{name}: top-1 {' '.join(f'{100 * value:.2f}' for value in accuracies[name])} % at severities 1 to 5")
    values = {"image_size": info.image_size, "images": len(source), "top1": accuracies}
    write_text(subject.folder / f"{subject.stem}_corruptions.json", json.dumps(values, indent=2))
    return accuracies


def check_corruptions(subject: Subject) -> None:
    """Refuse, with a SettingsError, a file that crops images by itself."""
    if not subject.flexible and subject.info.center_crop != 1:
        raise SettingsError(f"--corruptions: {subject.path} crops images by itself: evaluate its run, on PyTorch")


def _some(source: ImageSource, limit: int | None) -> ImageSource:
    if limit is None or limit >= len(source):
        return source
    return source.subset(np.linspace(0, len(source) - 1, limit).astype(np.int64))


def _accuracy(predictions: SplitLogits) -> float:
    return (ranked(predictions.logits)[:, 0] == predictions.targets).double().mean().item()


def surest_mistakes(subject: Subject, predictions: SplitLogits, count: int) -> list[dict[str, Any]]:
    """At most ``count`` images of which the model is wrong, the surest first: ``path``, ``true``, ``predicted``,
    ``probability``."""
    rows = most_confident_mistakes(predictions.logits, predictions.targets, count)
    logits, classes = predictions.logits[rows], subject.info.classes
    return [
        {
            "path": subject.source.image_name(index),
            "true": classes[target],
            "predicted": classes[guess],
            "probability": chance,
        }
        for index, target, guess, chance in zip(
            predictions.indices[rows].tolist(),
            predictions.targets[rows].tolist(),
            ranked(logits)[:, 0].tolist(),
            logits.softmax(1).amax(1).tolist(),
            strict=True,
        )
    ]
