"""Contestants that take turns, each in a process of its own, so that a slow minute of the machine is not one's alone.

They differ in the allocator's settings and in what they compile, which no process can have both ways. One that waits
is blocked on a pipe: the threads of its OpenMP, which spin for some milliseconds after a step, are asleep by then, and
what it used all the same is measured.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from convnext.errors import UserError

Step = Callable[[], object]
Make = Callable[[contextlib.ExitStack], Step]
"""Builds what is measured, in its process; what it opens is closed at the end. It can be pickled."""
LEAST_ROUNDS = 3
_WARMUP = {"cpu": 2}  # steps that allocate, compile and choose algorithms; elsewhere record CUDA graphs too
_WARMUP_ELSEWHERE = 5


@dataclass(frozen=True)
class Times:
    """What a contestant took.

    Attributes:
        turns: mean seconds of a step in each of its turns.
        idle: its processor time over the time for which it waited.
    """

    turns: list[float]
    idle: float

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.turns)


class ContestantError(UserError):
    """A contestant could not be built or failed; the message names it."""


def take_turns(
    contestants: Mapping[str, Make], device: str, rounds: int, seconds: float = math.inf, turn: float = 0.0
) -> dict[str, Times]:
    """Measure all, in rounds of a turn each.

    Args:
        contestants: how each is built, by name.
        device: where they compute. They are built at the same time, and then warm up one at a time: what chooses
            algorithms by measurement does so alone on the device.
        rounds: at most, and at least `LEAST_ROUNDS`.
        seconds: after which no more rounds begin.
        turn: seconds that a turn lasts at least, in whole steps, behind one that is not timed: in that caches fill and
            threads wake up. 0 for one step, which is timed.

    Raises:
        ContestantError: one failed.
    """
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(_started(make, device, turn)) for name, make in contestants.items()}
        for name, pipe in started.items():
            _answer(name, pipe)  # it is built
        for name, pipe in started.items():
            _ask(pipe, True)
            _answer(name, pipe)  # it is warm
        turns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in started}
        begun = time.perf_counter()
        while len(turns[name]) < rounds and (len(turns[name]) < LEAST_ROUNDS or time.perf_counter() - begun < seconds):
            for name, pipe in started.items():
                _ask(pipe, True)
                turns[name].append(_answer(name, pipe))
        for pipe in started.values():
            _ask(pipe, False)
    return {
        name: Times([took for took, _, _ in each], sum(cpu for _, cpu, _ in each) / sum(wall for _, _, wall in each))
        for name, each in turns.items()
    }


def _ask(pipe: Connection, more: bool) -> None:
    """Ask a contestant for its next turn, or to end. One that has failed is asked in vain: its answer says why."""
    with contextlib.suppress(OSError):
        pipe.send(more)


def _answer(name: str, pipe: Connection) -> tuple[float, float, float]:
    try:
        answer: tuple[float, float, float] | str = pipe.recv()
    except (EOFError, ConnectionError):
        raise ContestantError(f"{name}: its process died") from None
    if isinstance(answer, str):
        raise ContestantError(f"{name}: {answer}")
    return answer


@contextlib.contextmanager
def _started(make: Make, device: str, turn: float) -> Iterator[Connection]:
    """The pipe of a process that was started for a contestant."""
    context = multiprocessing.get_context("spawn")  # a forked process would inherit the allocator's settings
    pipe, theirs = context.Pipe()
    process: BaseProcess = context.Process(target=_run, args=(make, device, turn, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield pipe
    except BaseException:
        process.kill()  # ours would take another signal for the end of its run
        raise
    finally:
        process.join()


def _run(make: Make, device: str, turn: float, pipe: Connection) -> None:
    """In the contestant's process: build it and say so, warm up when asked, and take a turn whenever asked again."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is not our result
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair
    try:
        with contextlib.ExitStack() as stack:
            step = make(stack)
            pipe.send((0.0, 0.0, 0.0))
            pipe.recv()
            for _ in range(_WARMUP.get(device, _WARMUP_ELSEWHERE)):
                step()
            count = max(1, math.ceil(turn / _seconds(step, 1, device)))
            _free(device)
            pipe.send((0.0, 0.0, 0.0))
            waited, used = time.perf_counter(), time.process_time()
            while pipe.recv():
                idle = time.process_time() - used, time.perf_counter() - waited
                if turn:
                    step()
                took = _seconds(step, count, device)
                _free(device)
                pipe.send((took, *idle))
                waited, used = time.perf_counter(), time.process_time()
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _seconds(step: Step, count: int, device: str) -> float:
    """Mean of a step, with what it left the device to do."""
    _wait_for(device)
    started = time.perf_counter()
    for _ in range(count):
        step()
    _wait_for(device)
    return (time.perf_counter() - started) / count


def _free(device: str) -> None:
    """Give up the memory that is not in use: it is the next contestant's."""
    if device == "cuda":
        torch.cuda.empty_cache()


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
