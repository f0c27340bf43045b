"""What several commands need: options from the command line; tables, percentages and settings on it."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import tyro

from convnext.errors import SettingsError

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")
Flag: TypeAlias = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""An option without a value, and without one of the opposite."""


def parse(
    kind: type[T], args: Sequence[str], command: str, default: T | None = None, description: str | None = None
) -> T:
    """Parse a command's options; a mistake becomes one line.

    Raises:
        SettingsError: unknown option or bad value.
        SystemExit: ``--help`` was printed.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: T = tyro.cli(kind, args=list(args), prog=f"convnext {command}", description=description, **options)
            return parsed
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise SettingsError(f"{_one_line(errors.getvalue())} (see convnext {command} --help)") from None


def _one_line(box: str) -> str:
    """The first paragraph of tyro's framed message, with its suggestions."""
    lines = [re.sub(r"[─╭╮╰╯│]", "", line).strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = " ".join(line or "\n" for line in lines).split("\n")
    text = paragraphs[0].strip().rstrip(".")
    suggested = [
        name for paragraph in paragraphs[1:] if "meant" in paragraph for name in re.findall(r"--[\w.-]+", paragraph)
    ]
    return f"{text}: did you mean {' or '.join(dict.fromkeys(suggested[:3]))}?" if suggested else text


def table(*columns: str) -> "Table":
    """An empty table with these columns."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, highlight=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_table(rows: "Table") -> None:
    """Print to standard output; where that is no terminal, a row stays one line."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    with console.capture() as capture:  # printed by print, which leaves a closed pipe to the caller
        console.print(rows)
    print("\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines() if line.strip()))


def percent(fraction: float | None) -> str:
    """A fraction as percent, with two decimals; nothing where it is not known."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def assignments(values: Mapping[str, Any]) -> str:
    """``name=value name=value``, lists with commas."""
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) or "()" if isinstance(value, list | tuple) else str(value)
