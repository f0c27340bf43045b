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
roofline         where a step's time goes on a CPU
serving          a server under load
statistics       how often a difference is claimed
comparison/NAME  what `convnext compare` found
others           every other run
recipes          each recipe, the number that others published and ours

    python benchmarks/tables.py
    python benchmarks/tables.py --check    # writes nothing; exit status 1 and the names of texts that are out of date

Exit status 2 where a text or a ``run.json`` cannot be used.
"""

import argparse
import functools
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from command import run_command
from run_json import (
    ROOT,
    Link,
    Number,
    Run,
    TableError,
    grid,
    name_of_data,
    numbers_of,
    percent,
    range_of,
    runs,
    source_of,
)
from speed_tables import claims, comparison, inference, roofline, serving, speed

from convnext import recipes

REGION = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
ENTRIES = {"ours": "ours", "resnet18": "ResNet-18, AdamW", "timm": "timm's ConvNeXt, same depths and dims"}
METHODS = {"class-weights": "--loss.class-weights balanced", "sampler": "--data.sampler balanced"}


def reports(folder: Path, run: Run) -> list[Path]:
    """The reports that the run's ``top1`` and ``macro_f1`` come from: in its folder, or in ``seed-N`` for each seed."""
    folders = [folder] if len(run.seeds) < 2 else [folder / f"seed-{seed}" for seed in run.seeds]
    return [path for each in folders for split in ("test", "val") for path in each.glob(f"{split}_report.json")]


def settings(folder: Path) -> dict[str, Any]:
    """The settings that a folder holds; of the first seed where it has several."""
    settings: dict[str, Any] = json.loads(next(iter(sorted(folder.rglob("settings.json")))).read_bytes())
    return settings


def _minutes(value: float) -> str:
    return f"{value:.1f} min"


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
    return range_of(run.values("macro_f1"), 4) if run.values("macro_f1") else ""


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


def measured(link: Link) -> str:
    """What the recipes reached."""
    rows = []
    for name, where in _measured_folders():
        run, folder = runs()[where], ROOT / "results" / where
        rows.append([link(f"`{name}`", where), name_of_data(run), _model(folder, run), _top1(folder, run)])
        rows[-1] += [_macro_f1(run), _cost(folder, run), str(run.machine)]
    return grid(["recipe", "data", "model", "test top-1", "macro-F1", "cost", "machine"], rows)


def thirty_minutes(link: Link) -> str:
    """The entries of each data set, the best first."""
    rows_of_budget = [(where, run) for where, run in runs().items() if where.startswith("thirty-minutes/")]
    rows = []
    for where, run in sorted(rows_of_budget, key=lambda each: (name_of_data(each[1]), -each[1].values("top1")[0])):
        entry = where.rpartition("/")[2]
        name = ENTRIES.get(entry) or f"settings of `{settings(ROOT / 'results' / where)['recipe']}`"
        (parameters,), (epochs,), (minutes,) = (run.values(key) for key in ("parameters", "epochs", "cpu_minutes"))
        rows.append([name_of_data(run), link(name, where), f"{parameters:,}", f"{epochs:.0f}", f"{minutes:.1f} min"])
        rows[-1] += [percent(run.values("top1")), _macro_f1(run)]
    return grid(["data", "entry", "parameters", "epochs", "CPU time", "test top-1", "macro-F1"], rows)


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
    return grid(["training", "test top-1", "macro-F1", "seeds", "machine"], rows)


def others(link: Link) -> str:
    """The runs that are in none of the tables above."""
    shown = {where for _, where in _measured_folders()}
    rows = []
    for where, run in runs().items():
        if where not in shown and not where.startswith(tuple(f"{name}/" for name in TABLES)):
            minutes = _minutes(run.minutes) if run.minutes else ""
            rows.append([link(f"`{where}`", where), name_of_data(run), numbers_of(run, lambda _: True), minutes])
            rows[-1] += [str(run.machine), source_of(run)]
    return grid(["folder", "data", "result", "time", "machine", "date, commit"], rows)


def recipe_list(_: Link) -> str:
    """Every recipe and what is known of it."""
    rows = []
    for name in recipes.names():
        recipe = recipes.get(name)
        published = recipe.published.text() if recipe.published else ""
        ours = "; ".join(stated.text for stated in recipe.measured)
        rows.append([f"`{name}`", recipe.summary.rstrip("."), published, ours])
    return grid(["recipe", "what it is", "published, not run here", "measured"], rows)


TABLES: dict[str, Callable[..., str]] = {
    **{"measured": measured, "thirty-minutes": thirty_minutes, "speed": speed, "inference": inference},
    **{name: functools.partial(trainings, folder=f"{name}/") for name in ("imbalance", "not-learning")},
    **{
        "roofline": roofline,
        "serving": serving,
        "statistics": claims,
        "comparison": comparison,
        "others": others,
        "recipes": recipe_list,
    },
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
    base = {".": "results/", "results": "", "docs": "../results/", "docs/research": "../../results/"}.get(folder)

    def link(name: str, where: str) -> str:
        return name if base is None else f"[{name}]({base}{where})"

    def table(match: re.Match[str]) -> str:
        if "<!-- table:" in match[2]:
            raise TableError(f"{path}: the table {match[1]} has no <!-- end -->")
        name, _, one = match[1].partition("/")
        if name not in TABLES or bool(one) != (name == "comparison"):
            names = [f"{each}/NAME" if each == "comparison" else each for each in TABLES]
            raise TableError(f"{path}: no table is called {match[1]}; there are {', '.join(names)}")
        made = TABLES[name](link, match[1]) if one else TABLES[name](link)
        return f"<!-- table: {match[1]} -->\n{made}<!-- end -->"

    new, count = REGION.subn(table, text)
    if count != len(re.findall(r"^<!-- table: ", text, re.MULTILINE)):
        raise TableError(f"{path}: a table has no <!-- end -->")
    return new


def stale(root: Path = ROOT) -> list[Path]:
    """The files whose tables are not as they should be."""
    return [path for path in texts(root) if path.is_file() and filled(path, root) != path.read_text(encoding="utf-8")]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Fill the tables, or say which files are out of date; returns the exit status.

    Raises:
        TableError: a text or a ``run.json`` cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    outdated = stale(root)
    for path in outdated:
        print(path.relative_to(root))
        if not options.check:
            path.write_text(filled(path, root), encoding="utf-8")
    return 1 if options.check and outdated else 0


if __name__ == "__main__":
    run_command(main)
