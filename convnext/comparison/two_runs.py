"""Two models over the same images: how they differ, also by class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext.comparison.statistics import Pair, enough_resamples, holm, paired_difference
from convnext.errors import DataError
from convnext.evaluation.evaluator import SplitLogits, Subject
from convnext.evaluation.metrics import ranked


@dataclass(frozen=True)
class TwoRuns:
    """How two models differ.

    Attributes:
        pair: over all images that both could read.
        by_class: the same of the images of each class, those that differ most first; ``significant`` is over all
            classes together (Holm).
    """

    pair: Pair
    by_class: dict[str, Pair]


def compare_two(subjects: Sequence[Subject], predictions: Sequence[SplitLogits]) -> TwoRuns:
    """The difference of two models' accuracies, the first's less the second's.

    Args:
        subjects: both.
        predictions: of each, on its images.

    Raises:
        DataError: as of `check_two`.
    """
    check_two(subjects)
    first, _ = subjects
    classes = first.info.classes
    indices_a, indices_b = (each.indices.numpy() for each in predictions)
    common, *rows = np.intersect1d(indices_a, indices_b, return_indices=True)
    right = [_right(each)[some] for each, some in zip(predictions, rows, strict=True)]
    targets = first.source.targets[common]
    present = np.unique(targets)
    resamples = enough_resamples(len(present))
    pairs = holm(
        [paired_difference(*(each[targets == label] for each in right), resamples=resamples) for label in present]
    )
    named = {classes[label]: pair for label, pair in zip(present, pairs, strict=True)}
    ordered = sorted(named.items(), key=lambda item: (-abs(item[1].difference), item[1].p))
    return TwoRuns(paired_difference(*right), dict(ordered))


def check_two(subjects: Sequence[Subject]) -> None:
    """Refuse, with a DataError, two models that are of different images or classes."""
    first, second = subjects
    if first.info.classes != second.info.classes or first.source.fingerprint() != second.source.fingerprint():
        raise DataError(
            f"{first.path} and {second.path} are evaluated on other images or classes: give both the same --data.root "
            f"and --split"
        )


def _right(predictions: SplitLogits) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = (ranked(predictions.logits)[:, 0] == predictions.targets).numpy()
    return right
