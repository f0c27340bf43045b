"""Processes that read images may die at any moment: the error is the same."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convnext.data.loading.workers import reading
from convnext.errors import DataError, UserError

FORK = multiprocessing.get_context("fork")


class Numbers(Dataset[Tensor]):
    """Each number as a tensor, which a worker sends as an open file."""

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)


def loader(numbers: Numbers) -> "DataLoader[Tensor | UserError]":
    return DataLoader(numbers, batch_size=4, num_workers=2)


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()


def living_workers() -> list[int]:
    """Process numbers. One whose end is raised as it is waited for stays among multiprocessing's, though it is gone."""
    return [worker.pid for worker in multiprocessing.active_children() if worker.pid and psutil.pid_exists(worker.pid)]


def test_workers_killed_at_many_moments() -> None:
    for moment in range(24):
        with pytest.raises(DataError, match=r"died \(pid [\d, ]+\) at image 7: where"):
            read(loader(Numbers()), moment)
        assert not living_workers()


def read(numbers: "DataLoader[Tensor | UserError]", moment: int, before: Callable[[], object] = lambda: None) -> None:
    """Read all, and kill the workers after item ``moment``."""
    with reading(numbers, lambda: ["image 7"]) as stream:
        for index, _ in enumerate(stream):
            if index == moment:
                before()
                kill_workers()


class Lockable(DataLoader[Tensor]):
    """Has the lock of the event by which its workers are told to end."""

    def __iter__(self) -> Any:
        iterator: Any = super().__iter__()
        (event,) = (value for value in vars(iterator).values() if isinstance(value, Event))
        self.lock = event._cond  # type: ignore[attr-defined]
        return iterator


@pytest.mark.parametrize("moment", [0, 20])
def test_workers_that_die_with_a_lock_hold_nobody_up(moment: int) -> None:
    loader = Lockable(Numbers(), batch_size=4, num_workers=2)
    with pytest.raises(DataError, match=r"died \(pid [\d, ]+\) at image 7: where"):
        read(loader, moment, lambda: loader.lock.acquire())  # as if killed while one looked at the event
    assert not living_workers()


class DyingAtTheEnd(DataLoader[Tensor]):
    """The last worker dies before the first is told to end, which is raised there and then."""

    def __iter__(self) -> Any:
        iterator: Any = super().__iter__()

        class Iterator(type(iterator)):  # type: ignore[misc]
            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, value)
                if name == "_shutdown":
                    self._workers[-1].kill()
                    for _ in range(1_000_000):  # until SIGCHLD has come, whose handler raises
                        os.waitid(os.P_PID, self._workers[-1].pid, os.WEXITED | os.WNOWAIT)

        iterator.__class__ = Iterator
        return iterator


def test_no_worker_outlives_one_that_dies_at_the_end() -> None:
    numbers = DyingAtTheEnd(Numbers(), batch_size=4, num_workers=2)
    with pytest.raises(DataError, match="died"), reading(numbers, lambda: []) as stream:
        next(stream)
    assert not living_workers()


class HangingUp(Numbers):
    """A worker hangs up as its first tensor is fetched, as it would where it is killed at that moment."""

    def __getitem__(self, index: int) -> Tensor:
        def hang_up(caller: Connection, *_: Any) -> None:
            caller.close()

        connection.deliver_challenge = hang_up  # type: ignore[assignment]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the library writes the traceback of what comes of it
        return super().__getitem__(index)


def read_from_workers_that_hang_up(killing: bool) -> None:
    """End with status 0 where what is raised is as it should be.

    Args:
        killing: whether the workers die after the loader has found them alive, which is when it looks whether the
            reason is too many open files.
    """
    # Whether they live is asked then, and the kernel does not signal it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    own = os.getpid()

    def audit(event: str, _: tuple[Any, ...]) -> None:
        if killing and event == "tempfile.mkstemp" and os.getpid() == own:
            kill_workers()

    sys.addaudithook(audit)
    with pytest.raises(DataError if killing else (EOFError, OSError)):
        read(loader(HangingUp()), -1)


@pytest.mark.parametrize("killing", [True, False])
def test_a_worker_that_dies_as_it_hands_over_an_item(killing: bool) -> None:
    process = FORK.Process(target=read_from_workers_that_hang_up, args=(killing,))
    process.start()
    process.join()
    assert process.exitcode == 0
