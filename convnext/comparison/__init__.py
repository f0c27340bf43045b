"""Honest comparison: what is trained under one budget, and whether the difference is real."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.comparison.statistics import paired_difference as paired_difference

__all__ = ["paired_difference"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'convnext.comparison' has no attribute {name!r}")
    from convnext.comparison import statistics  # numpy, for which the command's help does not wait

    return getattr(statistics, name)
