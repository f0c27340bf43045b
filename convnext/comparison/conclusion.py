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
    better = [other for other in others if pairs[best.name, other.name].significant]
    alike = [other for other in others if other not in better]
    lines = []
    if better:
        each = [f"{other.name} by {_interval(pairs[best.name, other.name])}" for other in better]
        chance = "which is more" if len(better) == 1 else "each of which is more"
        lines.append(f"{best.name} is better than {_joined(each)}, {chance} than chance.")
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
    return [*lines, _scope(contenders)]


def _scope(contenders: Sequence[Result]) -> str:
    """What the claim is about, by how many times each was trained."""
    seeds = [len(contender.repeats) for contender in contenders]
    if min(seeds) == 1:
        return (
            "With one seed this is about these trained weights only: trained again, with another seed, another may "
            "come out ahead."
        )
    more = "" if min(seeds) == max(seeds) else " or more"
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


def _interval(pair: Pair) -> str:
    return f"{points(pair.difference)} ({_number(pair.low)} to {_number(pair.high)})"


def _joined(texts: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
