"""A file whose next reader waits for as long as a test likes."""

import fcntl
import os
import signal
from pathlib import Path

import pytest


class Held:
    """Holds back whoever opens ``path``, an ordinary file, until the block ends, or for the 45 seconds that Linux
    allows by default.

    It is a write lease: the kernel lets others wait in ``open`` until its holder, asked by a signal, gives it up.
    """

    def __init__(self, path: Path) -> None:
        if not hasattr(fcntl, "F_SETLEASE"):
            pytest.skip("this system has no leases on files")
        self.path = path

    def __enter__(self) -> "Held":
        self._before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        self._file = os.open(self.path, os.O_RDWR)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            self.__exit__()
            pytest.skip(f"this file system has no leases: {error}")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        signal.signal(signal.SIGIO, self._before)

    def release(self) -> None:
        """Let the readers go on, before the block ends."""
        fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def is_wanted(self) -> bool:
        """Whether somebody waits in ``open``."""
        return fcntl.fcntl(self._file, fcntl.F_GETLEASE) != fcntl.F_WRLCK
