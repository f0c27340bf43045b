"""How long a prediction takes from a cold start: a fresh process that names what is in one image, and ends.

Each model is a run's folder, or a file of ``convnext export``. Beside them stand a Python that does nothing and one
that imports torch, which any prediction by PyTorch has to wait for. All take turns, and files come out of the system's
cache.

    python benchmarks/cold_start.py runs/digits runs/digits/model.onnx runs/digits/model.xml --image IMAGE
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from command import positive, run_command

from convnext.errors import UserError
from convnext.storage.measurements import cpu_name


def seconds(command: list[str]) -> float:
    """Wall time of a fresh Python with these arguments.

    Raises:
        UserError: it failed.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"python {' '.join(command)}: {done.stderr.strip()}")
    return elapsed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="a run's folder, or an exported file")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=positive, default=7)
    options = parser.parse_args()
    commands = {"python": ["-c", "pass"], "import torch": ["-c", "import torch"]}
    commands |= {f"predict {name}": ["-m", "convnext", "predict", name, str(options.image)] for name in options.models}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(options.rounds + 1):
        for name, command in commands.items():
            elapsed = seconds(command)
            if number:  # the first round brings the files into the system's cache
                times[name].append(elapsed)
    width = max(map(len, commands))
    print(f"{cpu_name()}, {os.cpu_count()} cores, {options.rounds} rounds, seconds of wall time")
    print(f"{'':<{width}}    best  median  / import torch")
    torch = statistics.median(times["import torch"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<{width}}  {min(values):6.2f}  {median:6.2f}  {median / torch:14.2f}")


if __name__ == "__main__":
    run_command(main)
