"""The bar of what goes through a data set once: checking it, caching it, indexing its shards."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Iterable[T], total: int, title: str, shown: bool = True) -> Iterator[T]:
    """The items, with a bar on standard error where that is a terminal, unless not ``shown``."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not (shown and console.is_terminal)
    yield from track(items, title, total, console=console, transient=True, disable=hidden)
