"""`convnext benchmark` of a model, kept in ``results/inference/``, from which the table *inference* is made.

Leave the machine alone meanwhile: some 25 minutes for ConvNeXt-T on two cores. The folder is named after the machine.

    python benchmarks/inference.py convnext_tiny --machine epyc-2-cores
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version

import psutil
import torch
from tables import ROOT, Machine, Run

from convnext.inference.benchmark.benchmark import Row, benchmark
from convnext.inference.benchmark.subject import PRECISIONS
from convnext.inference.machine import cpu_name

KEYS = ("images_per_second", "batch", "p50_ms", "p95_ms")
LIBRARIES = ("torch", "timm", "torchvision", "onnxruntime", "openvino", "nncf")


def git(*words: str) -> str:
    """What git prints."""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


def numbers(rows: Iterable[Row]) -> dict[str, float]:
    """By names such as ``timm_eager_fp32_p50_ms``."""
    return {
        f"{row.model}_{row.backend}_{row.precision}_{key}": round(getattr(row, key), 2) for row in rows for key in KEYS
    }


def main() -> int:
    """Measure, and write ``run.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--machine", required=True, help="what to call it in the folder's name: epyc-2-cores")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=6.0, help="as of `convnext benchmark`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backends", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    if git("status", "--porcelain", "--", "convnext", "benchmarks"):
        parser.error("there are changes that are in no commit, which run.json would have to name: commit them first")
    started = time.monotonic()
    rows = benchmark(
        options.model,
        image_size=options.image_size,
        seconds=options.seconds,
        rounds=options.rounds,
        backends=options.backends,
        batch_sizes=options.batch_sizes,
    )
    run = Run(
        command=f"python benchmarks/inference.py {' '.join(sys.argv[1:])}",
        commit=git("rev-parse", "--short", "HEAD"),
        date=datetime.date.today(),
        machine=Machine(
            name=cpu_name(),
            cores=len(os.sched_getaffinity(0)),
            memory_gb=round(psutil.virtual_memory().total / 1e9),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        ),
        data=f"random images in memory, {options.image_size} px; {options.model}",
        seeds=[],
        minutes=round((time.monotonic() - started) / 60, 1),
        numbers=dict(numbers(rows)),
        note=f"{torch.get_num_threads()} threads; " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    )
    folder = ROOT / "results" / "inference" / options.machine / options.model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    print(folder / "run.json", "is written: now python benchmarks/tables.py", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
