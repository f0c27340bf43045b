"""Whether a difference is real: against scipy, cases with known answers, and contenders that are equal."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from contenders import results

from convnext.comparison import paired_difference
from convnext.comparison.statistics import (
    THESE_WEIGHTS,
    TRAINED_ANEW,
    Pair,
    detectable_difference,
    enough_resamples,
    holm,
)
from convnext.errors import SettingsError

_TIMES = 1000


def _counts(only_a: int, only_b: int, images: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One seed's results with so many images that only one of the contenders gets right."""
    a, b = np.ones(images, bool), np.ones(images, bool)
    a[:only_b] = False
    b[only_b : only_b + only_a] = False
    return a, b


def test_one_seed_agrees_with_scipy() -> None:
    a, b = _counts(120, 80, 2000)
    pair = paired_difference(a, b)
    assert (pair.difference, pair.images, pair.seeds, pair.claim) == (0.02, 2000, 1, THESE_WEIGHTS)
    means = [(a.astype(float) - b,)]
    peer = stats.bootstrap(*means, np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1))
    assert [pair.low, pair.high] == pytest.approx(list(peer.confidence_interval), abs=5e-4)
    assert pair.p == pytest.approx(stats.binomtest(120, 200).pvalue, abs=2e-3)  # McNemar's exact test


@pytest.mark.parametrize(("only_a", "only_b"), [(5, 0), (6, 1), (10, 2), (3, 3), (0, 0)])
def test_few_differing_images_claim_no_more_than_mcnemars_exact_test_does(only_a: int, only_b: int) -> None:
    pair = paired_difference(*_counts(only_a, only_b, 500))
    exact = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert pair.p == pytest.approx(exact, abs=0.03)
    assert (pair.p < 0.05) == (exact < 0.05)
    assert pair.low < pair.high


def test_where_seeds_decide_it_is_the_paired_t_test() -> None:
    """Images that are all alike: only seeds vary."""
    right = np.array([[60, 52], [63, 57], [58, 55], [66, 54]])  # of 100, by seed and contender
    a, b = (np.stack([np.arange(100) < count for count in column]) for column in right.T)
    generator = np.random.default_rng(0)
    order = np.argsort(generator.random((4, 20_000)), axis=1)  # so many images that they hardly matter
    a, b = (np.take_along_axis(np.tile(each, 200), order, axis=1) for each in (a, b))
    pair = paired_difference(a, b)
    peer = stats.ttest_rel(*right.T / 100)
    assert pair.claim == TRAINED_ANEW
    assert pair.p == pytest.approx(peer.pvalue, rel=0.1)
    assert [pair.low, pair.high] == pytest.approx(list(peer.confidence_interval()), rel=0.05)


def test_interval_and_p_agree_and_swapping_turns_the_sign() -> None:
    generator = np.random.default_rng(3)
    significant = set()
    for _ in range(30):
        a, b = results(generator, seeds=3, images=200, effect=1.0)
        pair, turned = paired_difference(a, b), paired_difference(b, a)
        assert pair.low <= pair.difference <= pair.high
        assert (pair.p < 0.05) == (not pair.low <= 0 <= pair.high)
        assert turned.difference == -pair.difference
        assert turned.p == pytest.approx(pair.p, abs=0.02)
        significant.add(pair.p < 0.05)
    assert significant == {True, False}


@pytest.mark.parametrize(("seeds", "deviation"), [(1, 0.0), (2, 0.1), (3, 0.0), (3, 0.1), (5, 0.1), (5, 0.3)])
def test_equal_contenders_are_claimed_to_differ_in_at_most_5_percent(seeds: int, deviation: float) -> None:
    generator = np.random.default_rng(0)
    claims = 0
    for _ in range(_TIMES):
        a, b = results(generator, seeds=seeds, images=500, deviation=deviation)
        claims += paired_difference(a, b, resamples=1000).p < 0.05
    assert claims <= 0.05 * _TIMES


def test_resampling_images_alone_would_claim_too_much() -> None:
    """What the seeds' term is for: seeds vary, and the runs of each are taken for one run on many images."""
    generator = np.random.default_rng(0)
    claims = 0
    for _ in range(200):
        a, b = results(generator, seeds=3, images=1000, deviation=0.3)
        claims += paired_difference(a.ravel(), b.ravel(), resamples=500).p < 0.05
    assert claims > 0.3 * 200


@pytest.mark.parametrize(("seeds", "effect"), [(1, 0.49), (3, 0.63), (5, 0.36)])
def test_a_detectable_difference_is_detected_as_often_as_asked(seeds: int, effect: float) -> None:
    """Of contenders that differ by about as much as is detectable."""
    generator = np.random.default_rng(0)
    claims, times = 0, 300
    differences, detectable = [], []
    for _ in range(times):
        a, b = results(generator, seeds=seeds, images=1000, effect=effect)
        pair = paired_difference(a, b, resamples=500)
        claims += pair.p < 0.05
        differences.append(pair.difference)
        detectable.append(detectable_difference(a, b))
    assert np.mean(detectable) == pytest.approx(np.mean(differences), rel=0.1)
    assert claims / times == pytest.approx(0.8, abs=0.1)


def test_more_images_and_seeds_detect_smaller_differences() -> None:
    a, b = results(np.random.default_rng(0), seeds=3, images=1000, deviation=0.05)
    here = detectable_difference(a, b)
    assert detectable_difference(a, b, seeds=10) < here < detectable_difference(a, b, images=100)
    assert detectable_difference(a, b, seeds=1) < here  # of these weights, a smaller claim
    assert detectable_difference(a[:1], b[:1]) == pytest.approx(
        2.8 * np.sqrt(np.mean(a[0] != b[0]) / 1000), rel=0.03
    )  # (1.96 + 0.84) standard errors


def _pairs(chances: Sequence[float]) -> list[Pair]:
    return [Pair(0.1, 0.0, 0.2, p, 100, 3, 0.95, TRAINED_ANEW) for p in chances]


@pytest.mark.parametrize("pairs", [1, 501, 1000])
def test_of_a_large_family_too_a_clear_difference_is_significant(pairs: int) -> None:
    clear = paired_difference([True] * 400, [False] * 400, resamples=enough_resamples(pairs))
    assert all(pair.significant for pair in holm([clear] * pairs))


def test_holm() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") = 0.03 0.06 0.06 0.02
    assert [pair.significant for pair in holm(_pairs([0.01, 0.04, 0.03, 0.005]))] == [True, False, False, True]
    # 0.03 alone would pass its own bound, but what is more probable failed before it.
    assert [pair.significant for pair in holm(_pairs([0.026, 0.03]))] == [False, False]
    assert [pair.significant for pair in holm(_pairs([0.04]))] == [True]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        ([True, False], [True], "must have the same shape"),
        ([], [], "must have the same shape"),
        ([[[True]]], [[[True]]], "must have the same shape"),
        ([0, 3], [1, 0], "true or false for each image"),
        ([0.2, 0.9], [0.1, 0.4], "true or false for each image"),
    ],
)
def test_what_cannot_be_compared(a: list[float], b: list[float], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        paired_difference(a, b)


def test_one_seed_knows_nothing_of_seeds() -> None:
    with pytest.raises(SettingsError, match="not known from one"):
        detectable_difference([True, False], [True, True], seeds=3)
    with pytest.raises(SettingsError, match="confidence: must be between 0 and 1, got 95"):
        paired_difference([True], [True], confidence=95)
