"""What several commands need: options from the command line; tables, percentages and settings on it."""

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import tyro
from rich.cells import cell_len

from convnext.config.base import VALUES
from convnext.errors import SettingsError, did_you_mean
from convnext.output import escaped

T = TypeVar("T")
Flag: TypeAlias = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""An option without a value, and without one of the opposite."""
_UNKNOWN = "Unrecognized options: "
_BAD_VALUE = re.compile(
    r"Error parsing (--\S+): (?:no type matching (.+) could be instantiated from|"
    r"(invalid literal for int|could not convert string to float).*:) \[?(.*?)\]?$"
)
_BAD_CHOICE = re.compile(r"invalid choice '(.*)' for argument '(.+)'. Expected one of \((.+)\)$")
_KINDS = {
    **{
        "[FLOAT [FLOAT ...]]": "numbers",
        "[INT [INT ...]]": "whole numbers",
        "FLOAT": "a number",
        "INT": "a whole number",
    },
    **{"|": " or ", ",": " or "},
}
_READABLE = 16  # columns that a cell of several words has at least


def parse(
    kind: type[T], args: Sequence[str], command: str, default: T | None = None, description: str | None = None
) -> T:
    """Parse a command's options; a mistake becomes one line.

    Raises:
        SettingsError: unknown option or bad value.
        SystemExit: ``--help`` was printed.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    options |= {"prog": f"convnext {command}", "description": description}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: T = tyro.cli(kind, args=list(args), **options)
            return parsed
    except SystemExit as stop:
        if stop.code == 0:
            raise
        help_text = io.StringIO()
        with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
            tyro.cli(kind, args=["--help"], **options)
        known = re.findall(r"^  (--?[\w.-]+)", help_text.getvalue(), re.MULTILINE)
        raise SettingsError(f"{_one_line(errors.getvalue(), known)} (see convnext {command} --help)") from None


def _one_line(box: str, known: Sequence[str]) -> str:
    """The first paragraph of tyro's framed message, with hints; ``known`` are the command's options. Where the encoding
    has no frames, the title is a paragraph, too, and lines of dashes end them."""
    lines = [
        re.sub(r"[─╭╮╰╯│]|^ *-{3,} *$", "", line).strip()
        for line in box.splitlines()
        if not line.startswith(("╭", "╰"))
    ]
    paragraphs = re.split(r"\s*\n\s*", " ".join(line or "\n" for line in lines).strip())
    text = paragraphs[0 if "╭" in box else 1].rstrip(".")
    if bad := _BAD_VALUE.match(text):
        kinds = bad[2] or ("INT" if "int" in bad[3] else "FLOAT")
        for kind, meaning in _KINDS.items():
            kinds = kinds.replace(kind, meaning)
        return f"{bad[1]} takes {re.sub('[{}]', '', kinds)}, not {bad[4]}"
    if bad := _BAD_CHOICE.match(text):
        choices = re.findall(r"'([^']*)'", bad[3])
        custom = VALUES.get(bad[2].removeprefix("--"))
        hint = _meant(bad[1], choices) or (f"; {custom}" if custom else "")
        return f"{bad[2]} takes {', '.join(choices[:-1])} or {choices[-1]}, not {bad[1]!r}{hint}"
    if not text.startswith(_UNKNOWN):
        return text
    word, _, value = text.removeprefix(_UNKNOWN).partition(", ")[0].partition("=")
    if word.startswith("-"):
        return f"no option is called {word}: {did_you_mean(word, known, 'none is alike')}"
    if value:
        hint = did_you_mean(word, known, f"did you mean --{word}?")
        return f"{word}={value} has no dashes: {hint.removesuffix('?')} {value}?"
    folder = f": a folder of images is given by --data.root {word}" if "--data.root" in known else ""
    return f"{word!r} is too much{folder if Path(word).is_dir() else ''}"


def _meant(choice: str, known: Sequence[str]) -> str:
    hint = did_you_mean(choice, known, "none is alike")
    return "" if hint == "none is alike" else f": {hint}"


class Table:
    """Rows of text under the names of their columns."""

    def __init__(self, *columns: str) -> None:
        self.columns, self.rows = columns, list[tuple[str, ...]]()

    def add_row(self, *cells: str) -> None:
        """A row, with a cell a column."""
        self.rows.append(tuple(map(escaped, cells)))

    def lines(self, width: int | None) -> Iterator[str]:
        """The table in lines of at most ``width`` (None for any), of whole words; the columns that do not fit into it
        follow below their row. A word longer than a line gets one of its own."""
        columns = list(zip(self.columns, *self.rows, strict=True))
        widths: list[int] = []
        for count in range(len(columns), 0, -1):
            if widths := _widths(columns[:count], width):
                break
        widths = widths or [max(map(cell_len, columns[0]))]
        yield from _row(self.columns[: len(widths)], widths)
        yield " " + "─" * (sum(widths) + 3 * len(widths) - 1)
        for row in self.rows:
            yield from _row(row[: len(widths)], widths)
            more = list(zip(self.columns, row, strict=True))[len(widths) :]
            if text := "; ".join(f"{name}: {cell}" for name, cell in more if cell):
                yield from (f"      {line}" for line in _wrapped(text, (width or 0) - 6))


def _widths(columns: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """The columns' widths, the widest made narrower until all fit; none where a word would have to be broken."""
    widths = [max(map(cell_len, column)) for column in columns]
    least = [max(cell_len(word) for cell in column for word in cell.split(" ")) for column in columns]
    least = [max(low, min(_READABLE, most)) for low, most in zip(least, widths, strict=True)]
    while width is not None and sum(widths) + 3 * len(widths) > width:
        wide = [index for index, low in enumerate(least) if widths[index] > low]
        if not wide:
            return []
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _row(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    wrapped = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for line in zip_longest(*wrapped, fillvalue=""):
        padded = (text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
        yield f"  {'   '.join(padded)}".rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words, of at most that many columns where the words allow it."""
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        if cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def print_table(rows: Table) -> None:
    """Print to standard output; where that is no terminal, a row stays one line."""
    print(*rows.lines(shutil.get_terminal_size().columns if sys.stdout.isatty() else None), sep="\n")


def percent(fraction: float | None) -> str:
    """A fraction as percent, with two decimals; nothing where it is not known."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def assignments(values: Mapping[str, Any]) -> str:
    """``name=value name=value``, lists with commas."""
    return " ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) or "()" if isinstance(value, list | tuple) else str(value)
