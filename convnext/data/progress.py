"""How far long work is: a bar on a terminal, elsewhere a line each minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from convnext.output import say

T = TypeVar("T")
PERIOD = 60.0  # seconds from one line to the next where there is no terminal


def tracked(
    items: Iterable[T], total: int, title: str, shown: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """The items, with a bar on standard error where that is a terminal, and else a line each minute by ``clock``; with
    nothing unless ``shown``."""
    if shown and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        # Standard output stays as it is: what is written there meanwhile is for another program.
        with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
            yield from progress.track(items, total, description=title)
        return
    start = last = clock()
    for done, item in enumerate(items):
        if shown and (now := clock()) - last >= PERIOD:
            say(f"{title}: {100 * done / total:.0f} %, {left(now - start, done, total)}")
            last = now
        yield item


def left(seconds: float, done: int, total: int) -> str:
    """How long the rest takes, where ``done`` of ``total`` took so many seconds."""
    return f"{duration(seconds / done * (total - done))} left" if done else "-:--:-- left"


def duration(seconds: float) -> str:
    """``3.2 s`` below a minute, from there on ``h:mm:ss``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
