"""Fill the tables of the texts from ``results/**/run.json``, so that a number is written down once.

A text (README.md, results/README.md, docs/**/*.md) marks where a table goes; what stands between is replaced:

    <!-- table: NAME -->
    <!-- end -->

measured         what the recipes' own runs reached: the folders that their ``MEASURED`` names
thirty-minutes   the same minutes of CPU time for several models and settings
imbalance        what is done about unequal classes
not-learning     what single settings make of a short run
speed            ours against a peer
inference        a model on every backend, beside timm's and torchvision's
serving          a server under load
others           every other run
recipes          each recipe, the number that others published and ours

    python benchmarks/tables.py
    python benchmarks/tables.py --check    # writes nothing; exit status 1 and the names of texts that are out of date
"""

import argparse
import datetime
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from convnext import recipes

ROOT = Path(__file__).resolve().parents[1]
REGION = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
UNITS = {"_images_per_second": "images/s", "_minutes": "min", "_ms": "ms", "_mb": "MB"}
ENTRIES = {"ours": "ours", "resnet18": "ResNet-18, AdamW", "timm": "timm's ConvNeXt, same depths and dims"}
METHODS = {"class-weights": "--loss.class-weights balanced", "sampler": "--data.sampler balanced"}
Number = int | float


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
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")] | None
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
            raise TableError(f"{path}: {error}") from None
    return by_folder


def reports(folder: Path, run: Run) -> list[Path]:
    """The reports that the run's ``top1`` and ``macro_f1`` come from: in its folder, or in ``seed-N`` for each seed."""
    folders = [folder] if len(run.seeds) < 2 else [folder / f"seed-{seed}" for seed in run.seeds]
    return [path for each in folders for split in ("test", "val") for path in each.glob(f"{split}_report.json")]


def settings(folder: Path) -> dict[str, Any]:
    """The settings that a folder holds; of the first seed where it has several."""
    settings: dict[str, Any] = json.loads(next(iter(sorted(folder.rglob("settings.json")))).read_bytes())
    return settings


def percent(values: Sequence[Number], decimals: int = 2) -> str:
    """The value, or the lowest and the highest."""
    return _range([100 * value for value in values], decimals) + " %"


def _range(values: Sequence[Number], decimals: int) -> str:
    return " to ".join(f"{value:.{decimals}f}" for value in sorted({min(values), max(values)}))


def _minutes(value: float) -> str:
    return f"{value:.1f} min"


def _name_of_data(run: Run) -> str:
    return run.data.partition(";")[0]


def _source(run: Run) -> str:
    return f"{run.date}, " + (f"`{run.commit}`" if run.commit else "commit not written down")


def _cost(folder: Path, run: Run) -> str:
    """Minutes, the cores they were spent on, and the precision."""
    time = ["at most "] * (len(run.seeds) > 1) + [_minutes(run.minutes)] if run.minutes else []
    time = time or [f"{_minutes(value)} of CPU time" for value in run.values("cpu_minutes")]
    threads = re.search(r"OMP_NUM_THREADS=(\d+)", run.command)
    cores = int(threads[1]) if threads else run.machine.cores or 1
    device = run.machine.gpu or f"{cores} core{'s' * (cores > 1)}"
    return f"{''.join(time) or 'time not measured'} on {device}, {settings(folder)['precision']}"


def _model(folder: Path, run: Run) -> str:
    model = settings(folder)["model"]
    shape = [f"{key} {' '.join(map(str, model[key]))}" for key in ("depths", "dims") if model[key]]
    name = "ConvNeXt" if shape else model["name"]
    return ", ".join([name, *shape, *(f"{value / 1e6:.2f} M parameters" for value in run.values("parameters"))])


def _top1(folder: Path, run: Run) -> str:
    """With what it was measured on, and how many seeds."""
    text = percent(run.values("top1"))
    text += "".join(f", with `--flip` {percent([value])}" for value in run.values("top1_flip"))
    about = ["val"] * any(path.name.startswith("val") for path in reports(folder, run))
    about += [f"{len(run.seeds)} seeds" if len(run.seeds) > 1 else "1 seed"]
    return f"{text} ({', '.join(about)})"


def _macro_f1(run: Run) -> str:
    return _range(run.values("macro_f1"), 4) if run.values("macro_f1") else ""


def _grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _measured_folders() -> list[tuple[str, str]]:
    """Recipe and folder below ``results`` of each number that a recipe states.

    Raises:
        TableError: the folder has no ``run.json``.
    """
    folders = []
    for name in recipes.names():
        for stated in recipes.get(name).measured:
            folders.append((name, stated.folder.removeprefix("results/")))
            if folders[-1][1] not in runs():
                raise TableError(f"the recipe {name} names {stated.folder}, which has no run.json")
    return folders


Link = Callable[[str, str], str]


def measured(link: Link) -> str:
    """What the recipes reached."""
    rows = []
    for name, where in _measured_folders():
        run, folder = runs()[where], ROOT / "results" / where
        rows.append([link(f"`{name}`", where), _name_of_data(run), _model(folder, run), _top1(folder, run)])
        rows[-1] += [_macro_f1(run), _cost(folder, run), str(run.machine)]
    return _grid(["recipe", "data", "model", "test top-1", "macro-F1", "cost", "machine"], rows)


def thirty_minutes(link: Link) -> str:
    """The entries of each data set, the best first."""
    rows_of_budget = [(where, run) for where, run in runs().items() if where.startswith("thirty-minutes/")]
    rows = []
    for where, run in sorted(rows_of_budget, key=lambda each: (_name_of_data(each[1]), -each[1].values("top1")[0])):
        entry = where.rpartition("/")[2]
        name = ENTRIES.get(entry) or f"settings of `{settings(ROOT / 'results' / where)['recipe']}`"
        (parameters,), (epochs,), (minutes,) = (run.values(key) for key in ("parameters", "epochs", "cpu_minutes"))
        rows.append([_name_of_data(run), link(name, where), f"{parameters:,}", f"{epochs:.0f}", f"{minutes:.1f} min"])
        rows[-1] += [percent(run.values("top1")), _macro_f1(run)]
    return _grid(["data", "entry", "parameters", "epochs", "CPU time", "test top-1", "macro-F1"], rows)


def _mean_and_deviation(values: Sequence[Number], decimals: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{deviation}"


def trainings(link: Link, folder: str) -> str:
    """Each way to train that is in that folder, best last: mean and standard deviation over its seeds."""
    rows = []
    for where, run in sorted(runs().items(), key=lambda each: sum(each[1].values("macro_f1"))):
        if where.startswith(folder):
            top1 = _mean_and_deviation([100 * value for value in run.values("top1")], 1) + " %"
            cells = [top1, _mean_and_deviation(run.values("macro_f1"), 3), f"{len(run.seeds)}", str(run.machine)]
            options = METHODS.get(where.removeprefix(folder), run.command.partition(" --epochs 10 ")[2])
            rows.append([link(f"`{options}`" if options else "as it is", where), *cells])
    return _grid(["training", "test top-1", "macro-F1", "seeds", "machine"], rows)


def _number(key: str, value: Number) -> str:
    if key.startswith(("top1", "top5")):
        return f"{key.replace('top', 'top-', 1).replace('_', ' ')} {percent([value])}"
    if key.startswith("macro_f1"):
        return f"{key.replace('macro_f1', 'macro-F1').replace('_', ' ')} {value:.4f}"
    for suffix, unit in UNITS.items():
        if key.endswith(suffix):
            return f"{key.removesuffix(suffix).replace('_', ' ').replace('cpu', 'CPU')} {value:,} {unit}"
    return f"{key.replace('_', ' ')} {value:,}"


def _numbers(run: Run, wanted: Callable[[str], bool]) -> str:
    numbers = [_number(key, value) for key in run.numbers if wanted(key) for value in run.values(key)]
    return ", ".join(numbers)


def speed(link: Link) -> str:
    """Every measurement of speed, by machine."""
    rows = []
    for where, run in runs().items():
        if where.startswith("speed/"):
            ratio = _numbers(run, lambda key: key.startswith("ratio_")).replace("ratio ", "")
            rest = _numbers(run, lambda key: not key.startswith("ratio_"))
            name = where.rpartition("/")[2].replace("-", " ")
            rows.append([str(run.machine), link(name, where), run.data.replace("; ", ", "), ratio, rest, _source(run)])
    header = ["machine", "what", "data and model", "our speed over the peer's", "measured", "date, commit"]
    return _grid(header, rows)


def inference(_: Link) -> str:
    """What ``benchmarks/inference.py`` measured: by machine and model, the most images a second first."""
    rows = []
    for where, run in runs().items():
        if not where.startswith("inference/"):
            continue
        ending = "_images_per_second"
        rates = {key.removesuffix(ending): run.values(key)[0] for key in run.numbers if key.endswith(ending)}
        eager = [rate for entry, rate in rates.items() if entry.startswith("timm_eager_")]
        for entry in sorted(rates, key=lambda entry: -rates[entry]):
            batch, p50, p95 = (run.values(f"{entry}_{key}")[0] for key in ("batch", "p50_ms", "p95_ms"))
            peers = [run.values("timm_eager_fp32_images_per_second"), [max(eager)] if eager else []]
            ratios = [f"{rates[entry] / peer[0]:.2f}" if peer else "" for peer in peers]
            rows.append([str(run.machine), run.data.partition("; ")[2], *entry.split("_")])
            rows[-1] += [f"{rates[entry]:,.1f} ({batch})", f"{p50:,.1f} ms", f"{p95:,.1f} ms", *ratios]
            rows[-1] += [_source(run)]
    header = ["machine", "model", "of", "backend", "precision", "images/s (batch)", "p50", "p95"]
    return _grid([*header, "over timm's eager fp32", "over timm's best eager", "date, commit"], rows)


def serving(_: Link) -> str:
    """What ``benchmarks/serving.py`` measured, a row a load."""
    rows = []
    for run in (run for where, run in runs().items() if where.startswith("serving/")):
        for load in [key.removesuffix("_p50_ms") for key in run.numbers if key.endswith("_p50_ms")]:
            keys = [f"{load}_{key}" for key in ("images_per_second", "p50_ms", "p95_ms", "p99_ms")]
            rows.append([load.replace("_", " "), *(f"{run.values(key)[0]:,}" for key in keys), _source(run)])
    return _grid(["load", "images/s", "p50 ms", "p95 ms", "p99 ms", "date, commit"], rows)


def others(link: Link) -> str:
    """The runs that are in none of the tables above."""
    shown = {where for _, where in _measured_folders()}
    rows = []
    for where, run in runs().items():
        if where not in shown and not where.startswith(tuple(f"{name}/" for name in TABLES)):
            minutes = _minutes(run.minutes) if run.minutes else ""
            rows.append([link(f"`{where}`", where), _name_of_data(run), _numbers(run, lambda _: True), minutes])
            rows[-1] += [str(run.machine), _source(run)]
    return _grid(["folder", "data", "result", "time", "machine", "date, commit"], rows)


def recipe_list(_: Link) -> str:
    """Every recipe and what is known of it."""
    rows = []
    for name in recipes.names():
        recipe = recipes.get(name)
        published = recipe.published.text() if recipe.published else ""
        ours = "; ".join(stated.text for stated in recipe.measured)
        rows.append([f"`{name}`", recipe.summary.rstrip("."), published, ours])
    return _grid(["recipe", "what it is", "published, not run here", "measured"], rows)


TABLES: dict[str, Callable[[Link], str]] = {
    **{"measured": measured, "thirty-minutes": thirty_minutes, "speed": speed, "inference": inference},
    **{name: functools.partial(trainings, folder=f"{name}/") for name in ("imbalance", "not-learning")},
    **{"serving": serving, "others": others, "recipes": recipe_list},
}


def texts(root: Path = ROOT) -> list[Path]:
    """The files that may have tables."""
    return [root / "README.md", root / "results" / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(path: Path, root: Path = ROOT) -> str:
    """A file's text with its tables as they should be.

    Raises:
        TableError: it asks for a table that there is not, or marks no end.
    """
    text = path.read_text(encoding="utf-8")
    folder = path.parent.relative_to(root).as_posix()
    base = {".": "results/", "results": "", "docs": "../results/"}.get(folder)

    def link(name: str, where: str) -> str:
        return name if base is None else f"[{name}]({base}{where})"

    def table(match: re.Match[str]) -> str:
        if "<!-- table:" in match[2]:
            raise TableError(f"{path}: the table {match[1]} has no <!-- end -->")
        if match[1] not in TABLES:
            raise TableError(f"{path}: no table is called {match[1]}; there are {', '.join(TABLES)}")
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]](link)}<!-- end -->"

    new, count = REGION.subn(table, text)
    if count != len(re.findall(r"^<!-- table: ", text, re.MULTILINE)):
        raise TableError(f"{path}: a table has no <!-- end -->")
    return new


def stale(root: Path = ROOT) -> list[Path]:
    """The files whose tables are not as they should be."""
    return [path for path in texts(root) if path.is_file() and filled(path, root) != path.read_text(encoding="utf-8")]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Fill the tables, or say which files are out of date; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        outdated = stale(root)
        for path in outdated:
            print(path.relative_to(root))
            if not options.check:
                path.write_text(filled(path, root), encoding="utf-8")
    except TableError as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if options.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
