"""Processes that read images for this one, and the error where one of them dies."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from convnext.errors import DataError, UserError

T = TypeVar("T")

_MOMENT = 1.0  # seconds at most from a dying process's broken connection to its end


@contextmanager
def reading(loader: DataLoader[T | UserError], being_read: Callable[[], list[str]]) -> Iterator[Iterator[T]]:
    """The loader's items; its workers end with the context.

    Args:
        loader: a `UserError` among its items is raised here, as one line.
        being_read: labels of the images that workers have begun to read and not finished.

    Raises:
        DataError: a worker died; the message names the image that it was reading.
    """
    iterator: Any = None
    try:
        try:
            iterator = iter(loader)
            _set_without_lock(iterator)
            yield _items(iterator)
        finally:
            # Workers ignore signals, so they must be ended also where the traceback of an error keeps the iterator.
            if error := _end_workers(iterator):
                raise error
    except RuntimeError as error:  # which the loader raises anywhere in the context, as soon as a worker is dead
        if not (died := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))):
            raise
        # Asked after the other workers have ended, which have finished their images.
        raise DataError(
            f"a process that reads images died (pid {died[1]}) at {'; '.join(being_read()) or 'no image'}: where "
            f"memory ran out lower --data.workers; where the image is the cause leave it out with --data.exclude; then "
            f"start again (a training: with --resume)"
        ) from error


class _Done:
    """The event by which workers are told to end, set without its lock: a worker that is killed while it looks at the
    event never gives the lock back, and `set` would wait for it for ever. Nobody waits on the event."""

    def __init__(self, event: Any) -> None:
        self.event, self._done = event, False

    def set(self) -> None:
        """Set it for the workers."""
        self.event._flag.acquire(False)
        self.event._flag.release()
        self._done = True

    def is_set(self) -> bool:
        """Whether it was set here, which is where it is set."""
        return self._done

    def is_stuck(self) -> bool:
        """Whether a dead worker has the lock, so that the others cannot go on."""
        if self.event._cond.acquire(True, _MOMENT):
            self.event._cond.release()
            return False
        return True


def _set_without_lock(iterator: Any) -> None:
    if event := getattr(iterator, "_workers_done_event", None):
        iterator._workers_done_event = _Done(event)


def _end_workers(iterator: Any) -> RuntimeError | None:
    """End all workers, those that live after their images; returns the loader's error for the death of one of them,
    which it raises anywhere, and so may interrupt each step of this."""
    error = None
    workers = getattr(iterator, "_workers", ())
    shut_down = getattr(iterator, "_shutdown_workers", lambda: None)

    def end_stuck() -> None:
        done = getattr(iterator, "_workers_done_event", None)
        if isinstance(done, _Done) and done.is_stuck():
            for worker in workers:
                worker.kill()

    for step in (end_stuck, shut_down, *(end for worker in workers for end in (worker.kill, worker.join))):
        try:
            step()
        except RuntimeError as raised:
            error = raised
    return error


def _items(iterator: Any) -> Iterator[Any]:
    """The iterator's items; where one cannot be had because a worker died, the loader's own error for that."""
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            # A worker that dies while it hands over an item breaks the connection, with one of many errors, a moment
            # before it counts as dead, which is when the loader asks.
            workers = {worker.sentinel: worker.pid for worker in getattr(iterator, "_workers", ())}
            ended = connection.wait(workers, _MOMENT) if workers else []
            if not ended:
                raise
            pids = ", ".join(str(workers[sentinel]) for sentinel in ended)
            _end_workers(iterator)  # of whom another's death would be raised outside of what explains it
            raise RuntimeError(f"DataLoader worker (pid(s) {pids}) exited unexpectedly") from error
        if isinstance(item, UserError):
            raise item
        yield item
