"""Keep the report of a comparison that ``convnext compare`` made, with a ``run.json``, in ``results/comparison/NAME``:

    python benchmarks/comparison.py comparison cifar10-models --root /data/cifar10

The folder of the data is DIR there, and that of the comparison ``comparison``. The machine is the one that the report
names, and the commit too, unless that had changes that were in none, or there are several.
"""

import argparse
import datetime
import json
import re
import shutil
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from command import run_command
from record import this_machine
from run_json import COMMIT, ROOT, Machine, Run

from convnext.errors import UserError, reason


def machine_of(measured_on: str) -> Machine:
    """The machine that a report names: a CPU with its threads, or a GPU. Of another than this no more is known."""
    cpu = re.fullmatch(r"(.*), \d+ threads?", measured_on)
    here = this_machine(uses_gpu=cpu is None)
    if measured_on == here.gpu or (cpu and cpu[1] == here.name):
        return here
    return Machine(name=cpu and cpu[1], cores=None, memory_gb=None, gpu=None if cpu else measured_on)


def run_of(report: dict[str, Any], scrub: dict[str, str], commit: str | None = None) -> Run:
    """What ``run.json`` holds of a report; ``scrub`` has what stands for this machine's paths."""
    how, numbers, seeds = report["how"], {}, set()
    # The cells are in the order in which they were trained, one seed of all contenders after the other.
    for name, group in groupby(sorted(report["cells"], key=itemgetter("contender")), key=itemgetter("contender")):
        cells = sorted(group, key=itemgetter("seed"))
        seeds |= {cell["seed"] for cell in cells}
        numbers[f"{re.sub('[^a-z0-9]+', '_', name.lower())}_top1"] = [cell["top1"] for cell in cells]
    several = len(seeds) > 1
    if any(cell.get("fold") is not None for cell in report["cells"]):  # over the test images of all of them
        means = {one["name"]: one["top1"]["mean"] for one in report["contenders"]}
        numbers = {f"{re.sub('[^a-z0-9]+', '_', name.lower())}_top1": [mean] for name, mean in means.items()}
        several = False
    return Run(
        command=_scrubbed(how["command"], scrub),
        commit=commit or (how["commit"] if re.search(COMMIT, how.get("commit", "")) else None),
        date=datetime.date.fromisoformat(how["made"][:10]),
        machine=machine_of(how["measured on"]),
        data=how["data"],
        seeds=sorted(seeds),
        minutes=round(max(cell["seconds"] for cell in report["cells"]) / 60, 2),
        numbers={name: values if several else values[0] for name, values in numbers.items()},
        note=f"of each training the minutes; {how['measured on']}; torch {how['torch']}",
    )


def _scrubbed(text: str, scrub: dict[str, str]) -> str:
    for path, name in scrub.items():
        text = text.replace(path, name)
    return text


def main() -> int:
    """Copy it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output of convnext compare")
    parser.add_argument("name", help="of the folder below results/comparison")
    parser.add_argument("--root", required=True, help="folder of the data, which becomes DIR")
    parser.add_argument("--commit", help="that was run, in place of the one that the report names")
    options = parser.parse_args()
    if options.commit and not re.search(COMMIT, options.commit):
        parser.error(f"--commit: {options.commit} is no commit, which has 7 to 40 hexadecimal digits")
    scrub = {options.root: "DIR", str(options.folder.resolve()): "comparison", str(options.folder): "comparison"}
    names = ("report.md", "report.json")
    texts = {name: _scrubbed((options.folder / name).read_text(encoding="utf-8"), scrub) for name in names}
    try:
        report = json.loads(texts["report.json"])
        if missing := report["missing"]:
            parser.error(f"{len(missing)} trainings are missing: let convnext compare go on first")
        run = run_of(report, scrub, options.commit)
    except (ValueError, KeyError, TypeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{options.folder / 'report.json'} is no report of convnext compare: {what}") from None
    target = ROOT / "results" / "comparison" / options.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(options.folder.glob("*.png")):
        shutil.copy(path, target)
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8")
    (target / "run.json").write_text(json.dumps(run.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    print(f"{target} is written")
    return 0


if __name__ == "__main__":
    run_command(main)
