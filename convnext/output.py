"""What the program says: names escaped, once for all processes, and never the end of a run."""

import codecs
import io
import os
import re
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress

# What moves the cursor, ends a line, is no character (of a file name that is no UTF-8), or turns the direction of
# writing. Joiners stay: Indic scripts, Persian and emoji need them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff]")
_PLAIN = {"─": "-", "…": "...", "█": "#", "▌": "-"}  # what stands for these in an encoding that lacks them


def escaped(text: str) -> str:
    r"""``text`` on one line, with control characters made visible (``\x1b``, ``\n``, ``\u202e``), else unaltered."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_first_process() -> bool:
    """Whether this is the one of the processes that torchrun started, or the only one, that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def await_first_process(seconds: float = 10.0) -> None:
    """Before a process that leaves the speaking to another ends by an error that all have: wait to be ended by their
    launcher, as torchrun ends all when one of them failed, which might else end the one that has not yet spoken."""
    time.sleep(seconds)


def say(*lines: str, by_all: bool = False) -> None:
    """Print lines to standard error, escaped, in the first process alone or ``by_all``.

    Standard error that cannot be written to (closed, on a full disk) ends nothing.
    """
    if by_all or is_first_process():
        with suppress(OSError):
            print(*(f"{escaped(line)}\n" for line in lines), sep="", end="", file=sys.stderr, flush=True)


def show(*lines: str) -> None:
    """Print lines to standard output, escaped."""
    print(*map(escaped, lines), sep="\n")


def filled(text: str, first: str = "", rest: str = "") -> str:
    """``text`` in lines as wide as the terminal, of whole words, that begin with ``first`` and then with ``rest``."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are; one that has a comma itself in quotation marks."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(f'"{name}"' if "," in name else name for name in names[:most]) + more if names else "no names"


def counted(number: int, noun: str) -> str:
    """``1 step``, ``2,000 steps``, ``2 classes``."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def prepare_streams() -> None:
    """Make standard streams that can be used: those that are closed lead nowhere, a character that their encoding lacks
    is replaced, and a library's warning is a line of ours."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    codecs.register_error("convnext", _in_plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="convnext")
    warnings.showwarning = _say_warning


def _say_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    say(f"{category.__name__}: {message}")


def _in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What to write in place of the first character that cannot be encoded."""
    if isinstance(error, UnicodeEncodeError) and (plain := _PLAIN.get(error.object[error.start])):
        return plain, error.start + 1
    return codecs.backslashreplace_errors(error)


def abandon_output() -> None:
    """After an error, let standard output lead nowhere if it takes nothing more: the flush at exit would fail, too."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
