"""Whether an exported file says what its source says."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from convnext.data.images import UnreadableImageError
from convnext.data.sources import ImageSource
from convnext.evaluation.metrics import ranked
from convnext.inference.backends import Backend, Images, logits_of
from convnext.inference.exported import compute_logits
from convnext.inference.preparation import Taker, prepare

BATCHES = range(1, 9)
"""Batch sizes at which an export is compared with its source."""


@dataclass(frozen=True)
class Comparison:
    """An exported file beside its source, on the same images.

    Attributes:
        images: how many.
        difference: the largest between two logits; NaN where one is none.
        scale: the largest of the source's logits; NaN where one is none.
        other_class: images whose most probable class is another.
    """

    images: int
    difference: float
    scale: float
    other_class: int


def pictures(source: ImageSource, backend: Taker, count: int) -> list[Images]:
    """Up to ``count`` readable images, spread evenly over ``source``, as ``backend`` takes them."""
    images = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist():
        try:
            images.append(prepare(source.picture(index), backend))
        except UnreadableImageError:  # training and evaluation name it
            continue
    return images


def compare(source: Backend, exported: Backend, images: list[tuple[Images, Images]]) -> Comparison:
    """Both backends on the same images, each as `prepare` made it for the one and for the other, in batches of every
    size of `BATCHES`, over and over."""
    difference, scale, other_class = 0.0, 0.0, 0
    ends = [0, *accumulate(BATCHES)]
    for first in range(0, len(images), ends[-1]):
        for start, end in pairwise(first + edge for edge in ends):
            if batch := images[start:end]:
                expected = logits_of(source, [one for one, _ in batch])
                actual = logits_of(exported, [other for _, other in batch])
                # Unlike Python's max, NumPy's keeps a NaN.
                with np.errstate(invalid="ignore"):
                    difference = float(np.maximum(difference, np.abs(expected - actual).max()))
                scale = float(np.maximum(scale, np.abs(expected).max()))
                other_class += int((expected.argmax(1) != actual.argmax(1)).sum())
    return Comparison(len(images), difference, scale, other_class)


def top1(backend: Backend, source: ImageSource, title: str) -> float:
    """The fraction of the readable images of ``source`` whose most probable class is theirs."""
    predictions = compute_logits(backend, source, title=title)
    return (ranked(predictions.logits)[:, 0] == predictions.targets).double().mean().item()
