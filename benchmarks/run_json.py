"""What ``results/`` holds: a ``run.json`` a folder, read and checked, and how its numbers are written in a table."""

import datetime
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[1]
UNITS = {"_images_per_second": "images/s", "_minutes": "min", "_ms": "ms", "_mb": "MB"}
COMMIT = r"^[0-9a-f]{7,40}$"
Number = int | float
Link = Callable[[str, str], str]
"""A Markdown link to a folder below ``results``, from a text by the text's own path: name and folder."""


class _Strict(BaseModel):
    """Exactly the keys named, of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Machine(_Strict):
    """Where it ran; null is what was not written down.

    Attributes:
        name: of the CPU.
        cores: of the CPU that the run could use.
        memory_gb: of the machine.
        gpu: its name, or null for none.
    """

    name: str | None
    cores: int | None
    memory_gb: Number | None
    gpu: str | None

    def __str__(self) -> str:
        cpu = [self.name or "", f"{self.cores} cores" if self.cores else ""]
        return ", ".join(filter(None, [self.gpu or "", *cpu]))


class Run(_Strict):
    """A ``run.json``: what a folder of ``results/`` shows, and how it was made.

    Attributes:
        command: that made it; DIR is where the data lies, SEED each of the seeds.
        commit: it was made at; null where that was not written down.
        date: it was made on.
        machine: it was made on.
        data: name and size of the images up to the first semicolon, then the rest.
        seeds: of the runs; none for a measurement of speed.
        minutes: of the wall, of the longest where there are several seeds; null where that was not measured.
        numbers: top-1 and macro-F1 as fractions, a list where there are several seeds. ``ratio_PEER`` is our speed over
            the peer's.
        note: what else one should know.
    """

    command: Annotated[str, Field(min_length=1)]
    commit: Annotated[str, Field(pattern=COMMIT)] | None
    date: datetime.date
    machine: Machine
    data: Annotated[str, Field(min_length=1)]
    seeds: list[int]
    minutes: Annotated[float, Field(gt=0)] | None
    numbers: Annotated[dict[str, Number | list[Number]], Field(min_length=1)]
    note: str

    @model_validator(mode="after")
    def _check_lengths(self) -> "Run":
        for key, value in self.numbers.items():
            if isinstance(value, list) and (len(value) < 2 or len(value) != len(self.seeds)):
                raise ValueError(f"{key} has {len(value)} numbers for {len(self.seeds)} seeds")
        return self

    def values(self, key: str) -> list[Number]:
        """The numbers of that name, one a seed; none where there is no such name."""
        value = self.numbers.get(key, [])
        return value if isinstance(value, list) else [value]


class TableError(Exception):
    """A text or a ``run.json`` that cannot be used; the message names it."""


@functools.cache
def runs(results: Path = ROOT / "results") -> dict[str, Run]:
    """Every run by its folder below ``results``, sorted.

    Raises:
        TableError: a ``run.json`` does not fit.
    """
    by_folder = {}
    for path in sorted(results.rglob("run.json")):
        try:
            by_folder[path.parent.relative_to(results).as_posix()] = Run.model_validate_json(path.read_bytes())
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}".lstrip(": ") for each in error.errors())
            raise TableError(f"{path}: {'; '.join(faults)}") from None
    return by_folder


def percent(values: Sequence[Number], decimals: int = 2) -> str:
    """The value, or the lowest and the highest."""
    return range_of([100 * value for value in values], decimals) + " %"


def range_of(values: Sequence[Number], decimals: int) -> str:
    """The value, or the lowest and the highest, with so many decimals."""
    return " to ".join(f"{value:.{decimals}f}" for value in sorted({min(values), max(values)}))


def name_of_data(run: Run) -> str:
    """What the images are called."""
    return run.data.partition(";")[0]


def source_of(run: Run) -> str:
    """When it was measured, and at which commit."""
    return f"{run.date}, " + (f"`{run.commit}`" if run.commit else "commit not written down")


def grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _number(key: str, value: Number) -> str:
    if key.startswith(("top1", "top5")):
        return f"{key.replace('top', 'top-', 1).replace('_', ' ')} {percent([value])}"
    if key.startswith("macro_f1"):
        return f"{key.replace('macro_f1', 'macro-F1').replace('_', ' ')} {value:.4f}"
    for suffix, unit in UNITS.items():
        if key.endswith(suffix):
            return f"{key.removesuffix(suffix).replace('_', ' ').replace('cpu', 'CPU')} {value:,} {unit}"
    return f"{key.replace('_', ' ')} {value:,}"


def numbers_of(run: Run, wanted: Callable[[str], bool]) -> str:
    """The numbers with a wanted name, with that and their unit."""
    numbers = [_number(key, value) for key in run.numbers if wanted(key) for value in run.values(key)]
    return ", ".join(numbers)
