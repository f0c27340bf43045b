"""One process at a time, and none that is dead."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from convnext.errors import UserError
from convnext.storage.locks import alone, in_use, locked, remove_idle

FORK = multiprocessing.get_context("fork")


def forked(function: Callable[..., object], *args: object) -> BaseProcess:
    process = FORK.Process(target=function, args=args)
    process.start()
    return process


def test_a_folder_is_locked_by_one_process_which_others_name(tmp_path: Path) -> None:
    def refused() -> None:
        assert in_use(tmp_path)
        with (
            pytest.raises(UserError, match=f"^{tmp_path} is in use by process {os.getppid()}: let it end$"),
            locked(tmp_path),
        ):
            pass

    assert not in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []  # asking leaves nothing
    with locked(tmp_path):
        assert in_use(tmp_path)
        other = forked(refused)
        other.join()
        assert other.exitcode == 0
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not in_use(tmp_path)
    with locked(tmp_path):
        pass


def test_neither_a_killed_process_nor_its_child_keeps_a_lock(tmp_path: Path) -> None:
    receiving, sending = FORK.Pipe(duplex=False)
    end_receiving, end_sending = FORK.Pipe(duplex=False)

    def outlive() -> None:
        sending.send(os.getpid())
        end_receiving.recv()

    def hold() -> None:
        with locked(tmp_path), alone(tmp_path / ".other"):
            forked(outlive)
            signal.pause()

    holder = forked(hold)
    child = receiving.recv()
    assert in_use(tmp_path)
    holder.kill()
    holder.join()
    try:
        os.kill(child, 0)  # it lives
        with locked(tmp_path), alone(tmp_path / ".other"):
            assert in_use(tmp_path)
    finally:
        end_sending.send(None)


def test_processes_that_want_to_be_alone_wait_and_leave_no_file(tmp_path: Path) -> None:
    lock, count = tmp_path / ".lock", tmp_path / "count"
    count.write_text("0")

    def add() -> None:
        for _ in range(20):
            with alone(lock):
                count.write_text(str(int(count.read_text()) + 1))

    processes = [forked(add) for _ in range(3)]
    for process in processes:
        process.join()
    assert count.read_text() == "60"
    assert list(tmp_path.iterdir()) == [count]


def test_what_a_process_works_on_is_not_removed(tmp_path: Path) -> None:
    path, lock = tmp_path / "part", tmp_path / ".part.lock"
    path.write_text("so far")
    with alone(lock):
        other = forked(lambda: os._exit(remove_idle(path, lock)))
        other.join()
        assert other.exitcode == 0
        assert path.exists()
    assert remove_idle(path, lock)
    assert list(tmp_path.iterdir()) == []
