"""Whether two contenders differ, and by how much, from the images that each run of them gets right.

The accuracy of a run varies with the test images and with the seed of its training. For each seed s and image i let
``d[s, i]`` be 1 where only the first contender is right, -1 where only the second is, else 0: seeds and images are
crossed, as readers and cases are in radiology. The mean of d then varies by ``V / (S N) + (M - E) / (S N)``, with the
mean squares of seeds V, of images M and of the remainder E.

- *Images* are many: they are resampled, each with the results of all its seeds (paired bootstrap). An image with +1 and
  one with -1 are added first, without which few differing images claim too much (Bonett and Price 2012).
- *Seeds* are few. Three can be resampled in ten ways, which vary by two thirds of what seeds do, so that the claims of
  a bootstrap over both are false too often; and one's luck with few seeds decides many published comparisons
  (Bouthillier et al. 2021). Seeds enter as Student's t with S - 1 degrees of freedom, which is right for three as for
  thirty, on their mean square, which holds that of the remainder (Obuchowski and Rockette 1995, Hillis 2007).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convnext.errors import SettingsError

THESE_WEIGHTS = "these trained weights, on images like these"
TRAINED_ANEW = "models trained anew, on images like these"
_RESAMPLES = 20_000


@dataclass(frozen=True)
class Pair:
    """How the accuracies of two contenders differ.

    Attributes:
        difference: the first's accuracy less the second's, between -1 and 1.
        low: lower end of its interval.
        high: upper end.
        p: chance of a difference at least as large between contenders that are equal; below ``1 - confidence`` exactly
            where the interval leaves 0 out.
        images: test images.
        seeds: trainings of each contender.
        confidence: of the interval.
        claim: what interval and p are about: `THESE_WEIGHTS` with one seed, else `TRAINED_ANEW`.
        significant: whether the difference stands when all pairs of its family are looked at; None before `holm`.
    """

    difference: float
    low: float
    high: float
    p: float
    images: int
    seeds: int
    confidence: float
    claim: str
    significant: bool | None = None


def paired_difference(
    correct_a: ArrayLike, correct_b: ArrayLike, *, confidence: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> Pair:
    """The difference of two contenders' accuracies, with its interval and p.

    With one seed they are about *these trained weights*: whether the difference would be there on other images of the
    same kind. Another training may turn it round. With more they are about *models trained anew* by the same recipes
    with other seeds, on other images; the interval is then never inside that of these weights. Two seeds show only very
    large differences; three are a start, five are better.

    Args:
        correct_a: of each seed and image, whether the first contender is right: booleans ``(seeds, images)``, or
            ``(images,)`` of one seed.
        correct_b: the second's, of the same images in the same order; the runs with the same seed are in the same row.
        confidence: of the interval, between 0 and 1.
        resamples: draws of the bootstrap.
        seed: of these draws: the same arguments give the same result.

    Raises:
        SettingsError: arrays of other shapes, without images, or with other values than true and false.
    """
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence: must be between 0 and 1, got {confidence}")
    differences = _differences(correct_a, correct_b)
    seeds, images = differences.shape
    generator = np.random.default_rng(seed)
    steady, drawn = _bootstrap(differences, resamples, generator)
    draws = [steady + drawn]
    if seeds > 1:
        of_seeds, of_images, remainder = _mean_squares(differences)
        # The remainder's variance is in that of the seeds already.
        scale = np.sqrt(max(of_images - remainder, 0) / of_images)
        students = generator.standard_t(seeds - 1, resamples)
        draws.append(steady + scale * drawn + students * np.sqrt(of_seeds / differences.size))
    tail = (1 - confidence) / 2
    ends = [np.quantile(each, (tail, 1 - tail)) for each in draws]
    return Pair(
        difference=float(differences.mean()),
        low=float(max(-1, min(low for low, _ in ends))),
        high=float(min(1, max(high for _, high in ends))),
        p=max(_p(each) for each in draws),
        images=images,
        seeds=seeds,
        confidence=confidence,
        claim=TRAINED_ANEW if seeds > 1 else THESE_WEIGHTS,
    )


def _differences(correct_a: ArrayLike, correct_b: ArrayLike) -> NDArray[np.int8]:
    """1 where only the first is right, -1 where only the second is: ``(seeds, images)``."""
    a, b = (np.atleast_2d(np.asarray(correct)) for correct in (correct_a, correct_b))
    if a.shape != b.shape or a.ndim > 2 or not a.size:
        raise SettingsError(
            f"correct_a and correct_b: must have the same shape, (seeds, images) or (images,), got {a.shape} and "
            f"{b.shape}: compare runs on the same images, as many of each contender"
        )
    if not all(np.isin(each, (0, 1)).all() for each in (a, b)):
        raise SettingsError("correct_a and correct_b: must be true or false for each image, not scores or classes")
    return a.astype(np.int8) - b.astype(np.int8)


def _bootstrap(
    differences: NDArray[np.int8], resamples: int, generator: np.random.Generator
) -> tuple[float, NDArray[np.float64]]:
    """The mean difference with the two images added, and by how much resampling the images changes it each time:
    ``(resamples,)``."""
    seeds, images = differences.shape
    sums, counts = np.unique(np.append(differences.sum(0, dtype=np.int64), (seeds, -seeds)), return_counts=True)
    mean = sums @ counts / counts.sum() / seeds
    # Images with the same sum are alike: drawn together, each resample costs as many numbers as there are sums.
    drawn = generator.multinomial(images, counts / counts.sum(), resamples)
    return float(mean), drawn @ sums / (images * seeds) - mean


def _mean_squares(differences: NDArray[np.int8]) -> tuple[float, float, float]:
    """Of the seeds, the images (and the two added) and the remainder."""
    seeds, images = differences.shape
    by_seed, by_image = differences.mean(1), differences.mean(0)
    added = seeds * 2 / (images + 1)  # two more images, 1 from the mean
    of_seeds = images * by_seed.var(ddof=1)
    of_images = seeds * by_image.var(ddof=min(1, images - 1)) + added
    remainder = differences - by_seed[:, None] - by_image + differences.mean()
    return float(of_seeds), float(of_images), float((remainder**2).sum() / (seeds - 1) / max(images - 1, 1))


def _p(draws: NDArray[np.float64]) -> float:
    """Twice the smaller fraction of draws on the other side of 0; never 0, for the draws are finite."""
    smaller = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1, 2 * (smaller + 1) / (len(draws) + 1)))


def enough_resamples(pairs: int, alpha: float = 0.05) -> int:
    """Draws with which the smallest p that `paired_difference` can give is half of what `holm` asks first of so many
    pairs: with fewer, none of a large family could ever be significant."""
    return max(_RESAMPLES, round(4 * pairs / alpha))


def holm(pairs: Sequence[Pair], alpha: float = 0.05) -> list[Pair]:
    """The same pairs, of one family, with ``significant`` set so that the chance of a false claim among all of them is
    at most ``alpha`` (Holm 1979). Their intervals stay those of each pair alone."""
    standing = {}
    stands = True
    for rank, index in enumerate(sorted(range(len(pairs)), key=lambda index: pairs[index].p)):
        stands = stands and pairs[index].p <= alpha / (len(pairs) - rank)
        standing[index] = stands
    return [replace(pair, significant=standing[index]) for index, pair in enumerate(pairs)]


def detectable_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    images: int | None = None,
    seeds: int | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
) -> float:
    """The smallest true difference of accuracies that `paired_difference` would call significant with probability
    ``power``, for two contenders whose results vary as these do.

    Args:
        correct_a: as of `paired_difference`.
        correct_b: as there.
        images: that it is tested on; None for as many as there are here.
        seeds: of each contender; None for as many as there are here.
        power: between 0 and 1.
        confidence: as of `paired_difference`.

    Returns:
        A difference between 0 and 1; 1 where none is large enough.

    Raises:
        SettingsError: as of `paired_difference`; or more than one seed is asked for, and the arrays are of one, so that
            nothing is known of how seeds vary.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    differences = _differences(correct_a, correct_b)
    measured_seeds, measured_images = differences.shape
    seeds, images = seeds or measured_seeds, images or measured_images
    if measured_seeds == 1:
        if seeds > 1:
            raise SettingsError("seeds: how they vary is not known from one: give arrays of two seeds or more")
        error, freedom = np.sqrt((differences.var() + 2 / measured_images) / images), max(images - 1, 1)
    else:
        mean_squares = _mean_squares(differences)
        error, freedom = _error(mean_squares, measured_seeds, measured_images, seeds, images)
    critical = t.ppf((1 + confidence) / 2, freedom)

    def missing(difference: float) -> float:
        return float(nct.sf(critical, freedom, difference / error) - power)

    return float(brentq(missing, 0, 1)) if missing(1) > 0 else 1.0


def _error(
    mean_squares: tuple[float, float, float], measured_seeds: int, measured_images: int, seeds: int, images: int
) -> tuple[float, float]:
    """The standard error of the mean difference over so many seeds and images, and its degrees of freedom (Hillis
    2007), from the mean squares of other numbers of them."""
    of_seeds, of_images, remainder = mean_squares
    seed_variance = max(of_seeds - remainder, 0) / measured_images
    image_variance = max(of_images - remainder, 0) / measured_seeds
    if seeds == 1:
        return float(np.sqrt((image_variance + remainder) / images)), max(images - 1, 1)
    from_seeds, from_images = seed_variance / seeds + remainder / (seeds * images), image_variance / images
    freedom = (seeds - 1) * ((from_seeds + from_images) / from_seeds) ** 2 if from_seeds else images - 1
    return float(np.sqrt(from_seeds + from_images)), freedom
