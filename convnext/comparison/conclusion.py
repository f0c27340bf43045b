"""What follows from the numbers of a comparison, in sentences, whoever wins."""

from collections.abc import Mapping, Sequence

from convnext.comparison.results import Result
from convnext.comparison.statistics import Pair

_MORE = 1.25  # times the cost, from which on it is worth a sentence


def conclude(
    contenders: Sequence[Result], pairs: Mapping[tuple[str, str], Pair], detectable: Mapping[tuple[str, str], float]
) -> list[str]:
    """The sentences of the conclusion.

    Args:
        contenders: best first.
        pairs: by the names of the two, the better one first; significant or not.
        detectable: by the same names, the smallest true difference that was likely to be significant.
    """
    if not contenders:
        return ["No contender has finished, so nothing can be concluded yet."]
    best, *others = contenders
    if not others:
        alone = f"{best.name} alone has finished, with {percent(best.top1)} top-1"
        return [f"{alone}: there is nothing to compare it with yet."]
    surely = [other for other in others if pairs[best.name, other.name].significant]
    alike = [other for other in others if other not in surely]
    # By the seeds that both have, which are not all by whose mean it comes first.
    better = [other for other in surely if pairs[best.name, other.name].difference > 0]
    lines = []
    if better:
        each = [f"{other.name} by {_interval(pairs[best.name, other.name])}" for other in better]
        chance = "which is more" if len(better) == 1 else "each of which is more"
        lines.append(f"{best.name} is better than {_joined(each)}, {chance} than chance.")
    lines += [
        f"{best.name} has the higher mean of all its seeds, but of the seeds that both have {other.name} is better by "
        f"{_interval(pairs[best.name, other.name], -1)}, which is more than chance."
        for other in surely
        if other not in better
    ]
    if alike:
        names = _joined([other.name for other in alike], "or")
        each = [
            f"{'' if len(alike) == 1 else f'to {other.name} '}it is {_interval(pairs[best.name, other.name])}, and one "
            f"of at least {points(detectable[best.name, other.name])} would have been needed to be likely to show"
            for other in alike
        ]
        several = f" (after Holm's correction for {len(pairs)} comparisons)" if len(pairs) > 1 else ""
        lines.append(f"Between {best.name} and {names} no difference was shown: {'; '.join(each)}{several}.")
    lines += [line for other in others if (line := _cost(best, other))][:1]
    return [*lines, _scope(contenders, [pair.seeds for pair in pairs.values()])]


def _scope(contenders: Sequence[Result], seeds: Sequence[int]) -> str:
    """What the claims are about, by the seeds of each pair, which are those that both of the two have."""
    if min(seeds) == 1:
        some = "" if max(seeds) == 1 else " in common, as some pairs have,"
        return (
            f"With one seed{some} this is about these trained weights only: trained again, with another seed, another "
            f"may come out ahead."
        )
    more = "" if all(len(contender.repeats) == min(seeds) for contender in contenders) else " or more"
    return f"The claim is about models trained anew in this way: each was trained with {min(seeds)}{more} seeds."


def _cost(best: Result, other: Result) -> str:
    """That the best one had more to spend than another, where that is so."""
    ratios = {
        "training time": _mean([run.seconds for run in best.runs]) / _mean([run.seconds for run in other.runs]),
        "arithmetic in training": best.runs[0].training_flops / other.runs[0].training_flops,
        "parameters": best.runs[0].parameters / other.runs[0].parameters,
    }
    more = [f"{ratio:.1f} times the {name}" for name, ratio in ratios.items() if ratio >= _MORE]
    return f"{best.name} took {_joined(more)} of {other.name}." if more else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def points(fraction: float) -> str:
    """A difference in percentage points, such as ``1.2 points``."""
    return f"{_number(fraction)} points"


def _number(fraction: float) -> str:
    return f"{100 * fraction:.2f}" if abs(fraction) < 0.001 else f"{100 * fraction:.1f}"


def percent(fraction: float) -> str:
    """A fraction such as ``93.42 %``."""
    return f"{100 * fraction:.2f} %"


def _interval(pair: Pair, sign: int = 1) -> str:
    low, high = sorted((sign * pair.low, sign * pair.high))
    return f"{points(sign * pair.difference)} ({_number(low)} to {_number(high)})"


def _joined(texts: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
