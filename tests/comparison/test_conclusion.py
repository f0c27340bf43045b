"""The conclusion follows from the numbers, whoever wins."""

from dataclasses import replace

import pytest
from scipy import stats

from convnext.comparison.conclusion import conclude
from convnext.comparison.measured import Measured
from convnext.comparison.results import Result, common_seeds, pairwise, spread
from tests.support.comparing import contender


def concluded(*results: Result) -> str:
    ranked = sorted(results, key=lambda result: -result.top1)
    return " ".join(conclude(ranked, *pairwise(ranked)))


@pytest.mark.parametrize(("ours", "theirs", "winner"), [(0.9, 0.6, "a"), (0.6, 0.9, "b")])
def test_the_better_one_wins_whichever_it_is(ours: float, theirs: float, winner: str, measured: Measured) -> None:
    loser = "b" if winner == "a" else "a"
    text = concluded(contender("a", measured, [ours] * 3), contender("b", measured, [theirs] * 3))
    assert text.startswith(f"{winner} is better than {loser} by 30.0 points (")
    assert "), which is more than chance." in text
    assert text.endswith("models trained anew in this way: each was trained with 3 seeds.")


def test_no_difference_says_what_would_have_been_needed(measured: Measured) -> None:
    text = concluded(contender("a", measured, [0.9, 0.88, 0.92]), contender("b", measured, [0.9, 0.91, 0.88]))
    assert text.startswith("Between a and b no difference was shown: it is ")
    assert "better" not in text
    needed = float(text.split("one of at least ")[1].split()[0])
    assert 1 < needed < 30


def test_one_seed_is_about_these_weights_only(measured: Measured) -> None:
    text = concluded(contender("a", measured, [0.9]), contender("b", measured, [0.6]))
    assert "a is better than b" in text
    assert "With one seed this is about these trained weights only" in text
    mixed = concluded(contender("a", measured, [0.9] * 3), contender("b", measured, [0.6] * 2))
    assert "each was trained with 2 or more seeds" in mixed


def test_who_wins_by_the_seeds_that_both_have_is_said(measured: Measured) -> None:
    many, one = contender("many", measured, [0.5, 0.99, 0.99]), contender("one", measured, [0.8])
    text = concluded(many, one)
    assert text.startswith(
        "many has the higher mean of all its seeds, but of the seeds that both have one is better by 30.0 points ("
    )
    assert "many is better" not in text
    assert "-" not in text
    assert "With one seed this is about these trained weights only" in text
    text = concluded(many, one, contender("three", measured, [0.4, 0.5, 0.45]))
    assert "With one seed in common, as some pairs have, this is about these trained weights only" in text


def test_five_contenders_are_each_compared_with_the_best(measured: Measured) -> None:
    accuracies = {"a": 0.95, "b": 0.6, "c": 0.5, "d": 0.4, "e": 0.945}
    text = concluded(*(contender(name, measured, [value] * 3) for name, value in accuracies.items()))
    assert text.startswith("a is better than b by 35.0 points (")
    assert " and d by 55.0 points (" in text
    assert "each of which is more than chance. Between a and e no difference was shown" in text
    assert "(after Holm's correction for 10 comparisons)" in text


def test_the_cost_of_the_best_is_said(measured: Measured) -> None:
    large = contender("large", measured, [0.9] * 2, parameters=4 * measured.parameters)
    small = contender("small", measured, [0.5] * 2)
    assert "large took 4.0 times the parameters of small." in concluded(large, small)
    assert "took" not in concluded(contender("a", measured, [0.9] * 2), small)


def test_nothing_to_compare(measured: Measured) -> None:
    assert concluded() == "No contender has finished, so nothing can be concluded yet."
    alone = concluded(contender("a", measured, [0.9]))
    assert alone == "a alone has finished, with 90.00 % top-1: there is nothing to compare it with yet."


def test_seeds_are_paired_by_number_and_else_in_turn(measured: Measured) -> None:
    three, two = contender("a", measured, [0.9] * 3), contender("b", measured, [0.8] * 2)
    assert common_seeds(three, two) == [(0, 0), (1, 1)]
    later = replace(two, repeats=tuple(replace(repeat, seed=7 + repeat.seed) for repeat in two.repeats))
    assert common_seeds(three, later) == [(0, 7), (1, 8)]


def test_the_interval_over_seeds_is_student_s() -> None:
    values = [0.9, 0.92, 0.97]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert spread(values)[2:] == pytest.approx((expected.low, expected.high))
    assert spread([0.9]) == (0.9, None, None, None)
