"""`convnext benchmark` of a model, kept in ``results/inference/``, from which the table *inference* is made.

Leave the machine alone meanwhile: some 25 minutes for ConvNeXt-T on two cores. The folder is named after the machine.

    python benchmarks/inference.py convnext_tiny --machine epyc-2-cores
"""

import argparse
import time
from collections.abc import Iterable

import torch
from command import run_command
from record import uncommitted, write_run
from run_json import ROOT

from convnext.inference.benchmark.benchmark import Row, benchmark
from convnext.inference.benchmark.subject import PRECISIONS

KEYS = ("images_per_second", "batch", "p50_ms", "p95_ms")
LIBRARIES = ("torch", "timm", "torchvision", "onnxruntime", "openvino", "nncf")


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
    if problem := uncommitted():
        parser.error(problem)
    started = time.monotonic()
    rows = benchmark(
        options.model,
        image_size=options.image_size,
        seconds=options.seconds,
        rounds=options.rounds,
        backends=options.backends,
        batch_sizes=options.batch_sizes,
    )
    write_run(
        ROOT / "results" / "inference" / options.machine / options.model,
        numbers(rows),
        data=f"random images in memory, {options.image_size} px; {options.model}",
        seconds=time.monotonic() - started,
        libraries=LIBRARIES,
        note=f"{torch.get_num_threads()} threads",
    )
    print("now python benchmarks/tables.py")
    return 0


if __name__ == "__main__":
    run_command(main)
