"""Results of two contenders that are equal, or differ by so much, as image classifiers' results vary."""

import numpy as np
from numpy.typing import NDArray


def results(
    generator: np.random.Generator, *, seeds: int, images: int, deviation: float = 0.1, effect: float = 0.0
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images ``(seeds, images)`` each of the two gets right, about three quarters.

    In log-odds: images are of varied difficulty, the same for both; each contender finds some easier than the other
    does; a seed moves all its results by ``deviation`` and each by 1; and the first is better by ``effect``.
    """
    difficulty = generator.normal(2.2, 3, images)

    def of_one(better: float) -> NDArray[np.bool_]:
        odds = difficulty + generator.normal(better, 0.5, images)
        odds = odds + generator.normal(0, deviation, (seeds, 1)) + generator.normal(0, 1, (seeds, images))
        right: NDArray[np.bool_] = generator.random((seeds, images)) < 1 / (1 + np.exp(-odds))
        return right

    return of_one(effect / 2), of_one(-effect / 2)
