"""OpenVINO leaves a thread a stack for signals that it has freed: what starts it, runs in a thread of its own."""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(function: Callable[[], Result]) -> Result:
    """Call the function in a new thread and give its result, or raise what it raises.

    OpenVINO's CPU plugin, each time that it is loaded, gives the thread another alternate signal stack
    (``sigaltstack``), and, each time that it is unloaded, gives back the one that it found. Where a first one is
    unloaded before a second, the thread is left with freed memory, and the next signal with a handler of Python's
    (Ctrl-C, or the end of a worker process) kills the process without a word. A signal stack belongs to a thread, and
    signals of a process go to its main thread, which this spares.

    An interruption of the caller interrupts the function, too, and is raised when that has ended.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    try:
        thread.start()
        thread.join()
    except BaseException as interruption:
        if thread.ident is not None:
            identity, kind = ctypes.c_ulong(thread.ident), ctypes.py_object(type(interruption))
            ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, kind)
            thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
