"""How often `convnext.comparison.paired_difference` claims a difference, of simulated contenders that are equal, which
it should in at most 5 of 100 cases, and of contenders that differ: see ``contenders.py``.

    python benchmarks/false_claims.py --write

The seed of a contender moves its accuracy by about 0.9 points (a standard deviation), but where there is one seed,
which tells nothing of that.
"""

import argparse
import time
from itertools import product

import numpy as np
from command import run_command
from contenders import results
from record import uncommitted, write_run
from run_json import ROOT

from convnext.comparison.statistics import paired_difference

SEEDS, IMAGES = (1, 3, 5), (1_000, 10_000)
EFFECTS = {0.0: 10_000, 0.1: 1_000, 0.2: 1_000}  # in log-odds, and how many comparisons
DEVIATION, RESAMPLES = 0.1, 2_000


def claims(seeds: int, images: int, effect: float, times: int) -> tuple[float, float]:
    """The fraction of the comparisons in which a difference is claimed, and the mean difference."""
    generator = np.random.default_rng([seeds, images, int(100 * effect)])
    deviation = DEVIATION if seeds > 1 else 0.0
    claimed, differences = 0, 0.0
    for number in range(times):
        a, b = results(generator, seeds=seeds, images=images, deviation=deviation, effect=effect)
        pair = paired_difference(a, b, resamples=RESAMPLES, seed=number)
        claimed += pair.p < 0.05
        differences += pair.difference
    return claimed / times, differences / times


def main() -> None:
    """Print a table, and write it down where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write run.json into results/statistics/")
    parser.add_argument("--times", type=float, default=1.0, help="factor on the number of comparisons")
    options = parser.parse_args()
    if options.write and (problem := uncommitted()):
        parser.error(problem)
    start, numbers = time.perf_counter(), {}
    print("| seeds | images | true difference, points | claimed, % of comparisons |\n| --- | --- | --- | --- |")
    for (effect, times), images, seeds in product(EFFECTS.items(), IMAGES, SEEDS):
        fraction, difference = claims(seeds, images, effect, max(1, round(times * options.times)))
        points = 100 * difference if effect else 0.0
        numbers[f"{images}_images_{seeds}_seeds_{points:.1f}_points"] = round(100 * fraction, 2)
        print(f"| {seeds} | {images:,} | {points:.1f} | {100 * fraction:.2f} |", flush=True)
    if options.write:
        write_run(
            ROOT / "results" / "statistics" / "false-claims",
            numbers,
            data="simulated: images of varied difficulty, three quarters of them right, the same for both contenders",
            seconds=time.perf_counter() - start,
            libraries=["numpy"],
            note="At 5 % and 10,000 comparisons the standard error is 0.22 points; of power, at 1,000, at most 1.6",
            uses_gpu=False,
        )


if __name__ == "__main__":
    run_command(main)
