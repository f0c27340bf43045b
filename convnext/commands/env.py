"""``convnext env``: the machine and the libraries, for a report of a fault."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from convnext.commands.terminal import Flag, parse
from convnext.output import counted, show

Facts: TypeAlias = dict[str, str]

_FEATURES = ("avx", "avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16", "i8mm")
_VARIABLES = re.compile(
    "(CONVNEXT|CUDA|OMP|MKL|GOMP|KMP|TORCH|PYTORCH|NCCL|GLOO|ACCELERATE|HF|WANDB|NVIDIA|PYTHON|LC|XDG_CACHE)(_?[A-Z0-9_]*)"
    "|CC|LANG|TERM|COLUMNS|TMPDIR|RANK|LOCAL_RANK|WORLD_SIZE|SLURM_(JOB_ID|NTASKS|CPUS_PER_TASK|MEM_PER_NODE)"
)
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|AUTH")
_TIMEOUT = 10  # seconds for another program's answer


@dataclass(frozen=True)
class _Env:
    """Print what a report of a fault needs: versions, machine, accelerators, kernels, cache, environment variables."""

    json: Flag = False
    """Print one JSON object in place of lines."""


def main(args: Sequence[str]) -> int:
    """Print what a report of a fault needs: versions, machine, accelerators, kernels, cache, variables."""
    options = parse(_Env, args, "env")
    facts: Facts = {}
    for part in (_python, _machine, _libraries, _accelerators, _kernels, _cache, _variables):
        try:
            facts |= part()
        except Exception as error:  # what is broken here is what is asked about
            facts[part.__name__.strip("_")] = f"not known: {type(error).__name__}: {error}"
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        show(*(f"{name}: {value}" for name, value in facts.items() if value))
    return 0


def _first_line(*command: str) -> str:
    """The first line that a program prints, or why there is none."""
    if shutil.which(command[0]) is None:
        return f"no {command[0]}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return next(iter((done.stdout or done.stderr).splitlines()), "")


def _python() -> Facts:
    package = Path(__file__).parents[1]
    describe = ("git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12")
    return {
        "convnext": f"{metadata.version('convnext')} in {package}",
        "commit": _first_line(*describe) if (package.parent / ".git").exists() else "",
        "python": f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
        "system": platform.platform(),
    }


def _machine() -> Facts:
    import psutil

    from convnext.storage.measurements import cpu_name
    from convnext.training.memory import available

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    fields: dict[str, str] = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    flags = fields.get("flags", fields.get("Features", "")).split()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = ""
    with suppress(OSError, ValueError):  # no control group, or none with a limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = f", control group's limit {int(quota) / int(period):g}"
    total = psutil.virtual_memory().total
    return {
        "cpu": cpu_name(),
        "cpu features": " ".join(name for name in _FEATURES if name in flags),
        "cores": f"{usable} usable of {os.cpu_count()}{limit}",
        "memory": f"{total / 1e9:.1f} GB, {available() / 1e9:.1f} GB available to this process",
    }


def _libraries() -> Facts:
    wanted = [line for line in metadata.requires("convnext") or () if not re.search("extra == .dev.", line)]
    versions = {}
    for name in sorted({re.split(r"[^\w-]", line)[0] for line in wanted}):
        with suppress(metadata.PackageNotFoundError):  # of an extra that is not installed
            versions[name] = metadata.version(name)
    return {"libraries": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _accelerators() -> Facts:
    import torch

    facts = {
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, {torch.get_num_threads()} threads",
        "mps": "available" if torch.backends.mps.is_available() else "",
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "accelerators": "none that torch can use",
    }
    if torch.cuda.is_available():
        devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        facts["accelerators"] = "; ".join(
            f"{device.name}, {device.total_memory / 1e9:.1f} GB, compute capability {device.major}.{device.minor}"
            for device in devices
        )
        facts["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return facts


def _kernels() -> Facts:
    from convnext import kernels
    from convnext.storage.downloads import cache_folder

    compiler = shlex.split(os.environ.get("CC") or "cc")
    compiled = any((cache_folder() / "kernels").glob("*.so")) or os.environ.get("CONVNEXT_KERNELS") == "0"
    return {
        "kernels": kernels.describe() if compiled else "not compiled yet: the first training on a CPU does it",
        "compiler": _first_line(*compiler, "--version"),
    }


def _cache() -> Facts:
    from convnext.storage.downloads import cache_folder

    folder = cache_folder()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"cache": f"{folder}: {counted(len(sizes), 'file')}, {sum(sizes) / 1e6:,.1f} MB"}


def _variables() -> Facts:
    return {
        f"${name}": "(set)" if _SECRET.search(name) else value
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name)
    }
