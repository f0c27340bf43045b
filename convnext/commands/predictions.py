"""Predictions on standard output, as they come: a table with bars, JSON or CSV."""

import csv
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from rich.cells import cell_len

from convnext.inference.predictor import Result
from convnext.inference.results import Writer
from convnext.output import abandon_output, counted, escaped, few, show

FEW = 10
"""Images of which a table shows several classes each; of more it shows the best and counts."""
_BARS = (20, 10)  # columns of a bar, where there is room and where there is little
_PERCENT = len("100.0 %")
_CLASS = 30  # columns that a class's name may need before the images' names get lines of their own
_COUNTED = 8  # classes


@contextmanager
def table(paths: Sequence[str], class_names: Sequence[str], top_k: int) -> Iterator[Writer]:
    """A row for each class of an image: its probability, that as a bar, and its name. The image's name stands before
    them, or above where a terminal is too narrow for both."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    name_width = max(cell_len(escaped(path)) for path in paths)
    needed = name_width + _PERCENT + min(max(cell_len(escaped(name)) for name in class_names), _CLASS) + 8
    bar = next((bar for bar in _BARS if width is None or needed + bar <= width), 0)
    above, bar = bar == 0, bar or _BARS[0]
    best = Counter[str]()

    def write(path: str, result: Result) -> None:
        if not (above or best):
            _print_row("image", name_width, f"{'probability':<{_PERCENT + 1 + bar}}", "class")
            print(" " + "─" * (needed + bar - 1))
        names = [escaped(path), *[""] * (top_k - 1)]
        if above:
            print(f"  {names[0]}")
        for name, (class_name, probability) in zip(names, result.classes[:top_k], strict=False):
            percent = f"{100 * probability:.1f} %"
            text = f"{percent:>{_PERCENT}} {_bar(probability, bar)}"
            _print_row("" if above else name, 1 if above else name_width, text, escaped(class_name))
        sys.stdout.flush()
        best[result.classes[0].class_name] += 1

    yield write
    if (count := best.total()) > FEW:
        show(f"{counted(count, 'image')}: {few([f'{name} {times:,}' for name, times in best.most_common()], _COUNTED)}")


def _print_row(name: str, width: int, probability: str, class_name: str) -> None:
    print(f"  {name}{' ' * (width - cell_len(name))}   {probability}  {class_name}")


def _bar(fraction: float, width: int) -> str:
    halves = round(2 * width * fraction)
    return f"{'█' * (halves // 2) + '▌' * (halves % 2):<{width}}"


@contextmanager
def json_list(top_k: int) -> Iterator[Writer]:
    """A JSON list, with an object a line: ``path`` and ``predictions``, which are objects of ``class`` and
    ``probability``."""
    before = "["

    def write(path: str, result: Result) -> None:
        nonlocal before
        best = [dict(zip(("class", "probability"), one, strict=True)) for one in result.classes[:top_k]]
        print(before + json.dumps({"path": path, "predictions": best}), end="", flush=True)
        before = ",\n"

    yield write
    print("[]" if before == "[" else "]")


@contextmanager
def csv_rows(top_k: int) -> Iterator[Writer]:
    """CSV with a row for each class of an image: ``path``, ``rank`` from 1, ``class`` and ``probability``."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("path", "rank", "class", "probability"))
    shown = escaped if sys.stdout.isatty() else str  # a file has the names as they are

    def write(path: str, result: Result) -> None:
        for rank, (class_name, probability) in enumerate(result.classes[:top_k], start=1):
            rows.writerow((shown(path), rank, shown(class_name), probability))
        sys.stdout.flush()

    yield write


@contextmanager
def while_read(printed: AbstractContextManager[Writer]) -> Iterator[Writer]:
    """The same for as long as somebody reads standard output: once its reader, such as `head`, has gone, nothing is
    printed, and the files that were asked for, too, are written nevertheless."""
    with ExitStack() as stack:
        print_result: Writer = lambda *_: None  # noqa: E731
        with _reader_may_go():
            print_result = stack.enter_context(printed)

        def write(path: str, result: Result) -> None:
            with _reader_may_go():
                print_result(path, result)

        yield write
        with _reader_may_go():
            stack.close()
            sys.stdout.flush()


@contextmanager
def _reader_may_go() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        abandon_output()
