"""Signals that ask a run to stop, held until its step is finished and saved."""

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from accelerate import Accelerator

from convnext import distributed
from convnext.data.loading.loader import EvalSampler


class InterruptedRunError(Exception):
    """A run in ``folder`` stopped by the signal of that number, after its step was finished and saved."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; everything is saved in {folder}")
        self.folder = folder
        self.signal = number


class StopSignals:
    """While active, SIGTERM, SIGHUP and the first SIGINT to the run in ``folder`` are kept in `received`, and SIGUSR1
    in `save`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "StopSignals":
        self.received: int | None = None
        self.save = False
        self._before: dict[int, Any] = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    self._before[number] = signal.signal(number, self._note)
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_save)
        except ValueError:  # only the main thread may handle signals
            self._before = {}
        return self

    def stop(self) -> NoReturn:
        """Raise InterruptedRunError, because a signal asked this process or another one of the run for it."""
        raise InterruptedRunError(self.folder, self.received or signal.SIGTERM)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _note_save(self, _: int, __: FrameType | None) -> None:
        self.save = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def stopping_together(
    accelerator: Accelerator, signals: StopSignals, images: int, batch_size: int
) -> Callable[[], None]:
    """What to call before each batch of an evaluation, of all processes' ``images`` in batches of ``batch_size``, to
    stop all at the same one, with an `InterruptedRunError`, where a signal asked any of them to stop."""
    last = accelerator.num_processes - 1
    common = len(EvalSampler(images, batch_size, last, accelerator.num_processes))
    calls = itertools.count(1)

    def check() -> None:
        if next(calls) > common:  # the last process has one batch fewer, and would be waited for in vain
            return
        (asked,) = distributed.agreed(accelerator, signals.received is not None)
        if asked:
            signals.stop()

    return check
