"""What was measured on this machine, written down as a ``run.json``."""

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from run_json import ROOT, Machine, Number, Run

from convnext.storage.measurements import cpu_name

_NO_NAME = r"\((R|TM)\)|NVIDIA|Tesla|GeForce|CPU|Processor|@.*|\b\d+GB\b|\bHBM\w*|\bPCIe\b|\bSXM\d*"


def uncommitted() -> str:
    """What is wrong with naming the commit that this is; nothing where it can be named."""
    if _git("status", "--porcelain", "--", "convnext", "benchmarks"):
        return "there are changes that are in no commit, which run.json would have to name: commit them first"
    return ""


def commit_of_code() -> str:
    """The commit, in short, whose ``convnext`` and ``benchmarks`` these are; nothing where they are in none."""
    return "" if uncommitted() else _git("rev-parse", "--short", "HEAD")


def commit_since(start: str) -> str:
    """``start``, as `commit_of_code` named it, unless the code has changed since then, in a commit or not."""
    changed = not start or uncommitted() or _git("diff", "--name-only", start, "--", "convnext", "benchmarks")
    return "" if changed else start


def this_machine(uses_gpu: bool = True) -> Machine:
    """The machine that this is; without its GPU where that was not used."""
    return Machine(
        name=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(psutil.virtual_memory().total / 1e9),
        gpu=torch.cuda.get_device_name() if uses_gpu and torch.cuda.is_available() else None,
    )


def where(device: str) -> str:
    """The CPU or GPU by name, and how it is used."""
    gpu = f"{torch.cuda.get_device_name()}, on " if device == "cuda" else f"{device} of " if device != "cpu" else ""
    return f"{gpu}{cpu_name()}, {torch.get_num_threads()} threads"


def short_name(machine: Machine) -> str:
    """For a folder: ``h100``, ``amd-epyc-2-cores``."""
    name = re.sub(_NO_NAME, " ", machine.gpu or machine.name or "")
    return "-".join(re.findall(r"[a-z0-9]+", name.lower() + ("" if machine.gpu else f" {machine.cores} cores")))


def write_run(
    folder: Path,
    numbers: Mapping[str, Number],
    *,
    data: str,
    seconds: float,
    libraries: Iterable[str],
    note: str,
    uses_gpu: bool = True,
    commit: str | None = None,
) -> None:
    """Write ``run.json`` into a folder, and say so.

    Args:
        folder: where; it need not be there.
        numbers: what was measured, by name.
        data: as of `Run`.
        seconds: of the wall, that it took.
        libraries: whose versions the note names, of those that are installed.
        note: what else one should know.
        uses_gpu: whether the machine's GPU, if any, was used.
        commit: that was measured; None for the one that this process began at, or none where the code has changed
            meanwhile or is in no commit.
    """
    versions = ", ".join(filter(None, map(_with_version, libraries)))
    commit = commit or commit_since(IMPORTED) or None
    if commit is None:
        print("no commit is named: the code is in none, or has changed since this began", file=sys.stderr)
    run = Run(
        command=f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        commit=commit,
        date=datetime.date.today(),
        machine=this_machine(uses_gpu),
        data=data,
        seeds=[],
        minutes=max(round(seconds / 60, 1), 0.1),
        numbers=dict(numbers),
        note="; ".join(filter(None, [note, versions])),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    print(f"{folder / 'run.json'} is written", file=sys.stderr)


def _with_version(library: str) -> str:
    """Nothing where it is not installed."""
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    """What git prints; nothing where this is no repository."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


IMPORTED = commit_of_code()
"""The commit of the code that this process has imported."""
