"""How the benchmarks' commands end: an error that the user can mend is one line on standard error and exit status 2."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main`` and exit with the status that it returns, None for 0.

    Exit status 2, with a line: a setting, file, library, contestant or table cannot be used. 130: interrupted.
    Any other error is ours, and keeps its traceback.
    """
    try:
        status = main() or 0
        sys.stdout.flush()  # what cannot be written is an error of a file, too
    except KeyboardInterrupt:
        status = _ended("stopped", 130)
    except Exception as error:
        line = _line_of(error)
        if line is None:
            raise
        status = _ended(f"error: {line}", 2)
    sys.exit(status)


def positive(text: str) -> int:
    """The number of an option, such as ``--rounds``, that is at least 1: a ``type`` for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return number


def _ended(line: str, status: int) -> int:
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    return status


def _line_of(error: Exception) -> str | None:
    """What the user is told; None where the error is not the user's."""
    # Imported when something has failed: the scripts that need neither start without them.
    from run_json import TableError

    from convnext.errors import UserError, reason

    if isinstance(error, OSError):
        return f"{error.filename}: {reason(error)}" if error.filename else str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the library {error.name} is not installed"
    return str(error) if isinstance(error, UserError | TableError) else None
