"""Every measurement of speed for the machine that it runs on, into ``results/speed/<machine>/``.

Leave the machine alone meanwhile. Each measurement is written down when it is done, so that what an interrupted run has
measured stays.

Beside it stand ``epoch.py``, on whole epochs, and ``training.py --peers bare``, on what our trainer costs.

step        the training step of a small model at 32 px and of ConvNeXt-T at 224 px, fp32 and bf16: ``training.py``
inference   ConvNeXt-T on batches of 1 and 16, fp32 and bf16: ``prediction.py``
loading     reading images, where ``--images`` has some: ``loading.py``

    python benchmarks/all.py
    python benchmarks/all.py --only step inference --seconds 20    # some minutes on a GPU
    python benchmarks/all.py --quick --output /tmp/trial           # whether all works: the numbers are rough
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import loading
import prediction
import training
from command import positive, run_command
from record import short_name, this_machine, uncommitted, where, write_run
from run_json import COMMIT, ROOT, Number
from turns import ContestantError, Times

from convnext import kernels
from convnext.data.progress import duration
from convnext.devices import pick_device
from convnext.errors import UserError

PARTS = ("step", "inference", "loading")
RESULTS = ROOT / "results" / "speed"
LOADING_ROUNDS = 5  # at most: each reads all images three times
LIBRARIES = ("torch", "timm", "torchvision")
ROWS = ("ours", "ours-compiled")  # contestants that have a folder of their own
START, COMPILE = 15, 60  # seconds, for the estimate: of a contestant's start and warm-up, and with torch.compile
Numbers = dict[str, Number]


@dataclass(frozen=True)
class Measurement:
    """One, of the folders' ``names`` and ``data``, that ``run`` makes in ``seconds`` or so: numbers by folder.

    Without a model it uses neither the device nor our kernels, and has a ``note`` of its own.
    """

    names: tuple[str, ...]
    data: str
    seconds: float
    run: Callable[[], Mapping[str, Numbers]]
    note: str = ""


def compared(times: Mapping[str, Times], ours: str, key: str, value: Callable[[float], Number]) -> Numbers:
    """The ``value`` of each contestant's seconds as ``<name>_<key>``, and our speed over each peer's."""
    named = {"ours": times[ours]} | {name: each for name, each in times.items() if name not in ROWS}
    ratios = {name: each.median / named["ours"].median for name, each in named.items() if name != "ours"}
    numbers: Numbers = {f"ratio_{name.replace('-', '_')}": round(ratio, 2) for name, ratio in ratios.items()}
    return numbers | {f"{name.replace('-', '_')}_{key}": value(each.median) for name, each in named.items()}


def milliseconds(seconds: float) -> float:
    """With as many digits as say something."""
    return round(1e3 * seconds, 1 if seconds > 0.1 else 2)


def steps(options: argparse.Namespace) -> Iterator[Measurement]:
    """The training step: eager, and on a GPU compiled too, against the same turns of the peers."""
    large = training.Case((3, 3, 9, 3), (96, 192, 384, 768), 4, 224, 16 if options.device == "cpu" else 128)
    models = {"depths 2 4 2, dims 64 128 256, patch 2": training.Case(), "ConvNeXt-T": large}
    for name, model in models.items():
        for precision in ("fp32", "bf16"):
            case = training.Case(**vars(model) | {"precision": precision, "device": options.device})
            peers = ["timm", "timm-expert", "timm-compiled", *["torchvision"] * (case.patch == 4)]
            what = {f"step-{case.size}px-{precision}": "ours"}
            if options.device == "cpu" and precision != "fp32":
                peers.append("ours-fp32")
            if options.device == "cuda":
                peers.append("ours-compiled")
                what[f"step-{case.size}px-{precision}-compiled"] = "ours-compiled"

            def run(
                case: training.Case = case, peers: list[str] = peers, what: Mapping[str, str] = what
            ) -> Mapping[str, Numbers]:
                times = training.measure(case, peers, options.rounds, options.seconds)
                return {folder: compared(times, ours, "ms", milliseconds) for folder, ours in what.items()}

            data = f"random images in memory, {case.size} px; {name}, batch {case.batch}"
            yield Measurement(tuple(what), data, options.seconds + START * len(peers) + COMPILE, run)


def predictions(options: argparse.Namespace) -> Iterator[Measurement]:
    """Inference, as `predict` and `evaluate` compute."""
    for precision in ("fp32", "bf16"):
        for batch in (1, 16):
            case = prediction.Case(batch=batch, precision=precision, device=options.device)
            what = f"predict-{case.size}px-{precision}-batch-{batch}"

            def run(case: prediction.Case = case, what: str = what) -> Mapping[str, Numbers]:
                times = prediction.measure(case, options.rounds, options.seconds)
                return {what: compared(times, "ours", "ms", milliseconds)}

            data = f"random images in memory, {case.size} px; ConvNeXt-T, batch {batch}"
            yield Measurement((what,), data, options.seconds + 2 * START, run)


def readings(options: argparse.Namespace) -> Iterator[Measurement]:
    """Loading, as training reads."""
    if options.images is None:
        print("loading is left out: --images names no images", file=sys.stderr)
        return
    workers, repeat = len(os.sched_getaffinity(0)), 4 if options.quick else 40
    rounds = min(options.rounds, LOADING_ROUNDS)

    def run() -> Mapping[str, Numbers]:
        # Of a process whose main module is small, since each worker imports that: this one takes seconds.
        words = [loading.__file__, "--images", options.images, "--workers", workers, "--repeat", repeat]
        words += ["--rounds", rounds, "--json"]
        done = subprocess.run([sys.executable, *map(str, words)], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise ContestantError(f"{Path(loading.__file__).name} ended with exit status {done.returncode}")
        rates: dict[str, list[float]] = json.loads(done.stdout)
        median = {name: statistics.median(values) for name, values in rates.items()}
        ratios = {
            "ratio_timm": round(median["ours"] / median["timm"], 2),
            "ratio_timm_cached": round(median["ours_cached"] / median["timm"], 2),
        }
        return {"loading": ratios | {f"{name}_images_per_second": round(rate) for name, rate in median.items()}}

    data = f"JPEG files of {options.images.name}, {repeat} links to each; random resized crops of {loading.SIZE} px"
    yield Measurement(("loading",), data, repeat * rounds, run, f"{workers} workers of 1 thread; {rounds} rounds")


def main() -> int:
    """Measure and write; returns the exit status: 1 where something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement, after which no rounds begin")
    parser.add_argument("--rounds", type=positive, default=15, help="of each measurement, at most")
    parser.add_argument("--quick", action="store_true", help="three rounds of each: whether all works")
    parser.add_argument("--images", type=Path, help="folder or tar file of JPEGs named CLASS_*.JPEG, for loading")
    parser.add_argument("--machine", help="the folder's name; by default made of the CPU's or GPU's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the machine's; --quick needs another")
    parser.add_argument("--commit", help="that is measured, where this is no repository of git")
    options = parser.parse_args()
    if options.output.resolve() == RESULTS:
        if options.quick:
            parser.error("--quick: its numbers are rough: give an --output that is not results/speed")
        if problem := uncommitted():
            parser.error(problem)
    if options.commit and not re.search(COMMIT, options.commit):
        parser.error(f"--commit: {options.commit} is no commit, which has 7 to 40 hexadecimal digits")
    if options.images is not None and not options.images.exists():
        parser.error(f"--images: {options.images} is not there")
    options.device = pick_device(options.device)
    if options.quick:
        options.seconds, options.rounds = 0.0, 3
    makers = dict(zip(PARTS, (steps, predictions, readings), strict=True))
    wanted = [each for part in PARTS if part in options.only for each in makers[part](options)]
    machine = options.machine or short_name(this_machine(options.device == "cuda"))
    about = duration(sum(each.seconds for each in wanted))
    print(f"{where(options.device)}: {len(wanted)} measurements, about {about}", file=sys.stderr)
    return 1 if sum(not write(each, options, options.output / machine) for each in wanted) else 0


def write(measurement: Measurement, options: argparse.Namespace, folder: Path) -> bool:
    """Measure and write down; False, with a line, where that fails."""
    started = time.monotonic()
    try:
        results = measurement.run()
    except UserError as error:
        print(f"left out: {', '.join(measurement.names)}: {error}", file=sys.stderr)
        return False
    model_note = where(options.device).rpartition(", ")[2]
    if options.device == "cpu":
        model_note += f"; ours by {kernels.describe()}"
    for name, numbers in results.items():
        write_run(
            folder / name,
            numbers,
            data=measurement.data,
            seconds=time.monotonic() - started,
            libraries=LIBRARIES,
            note=f"{measurement.note or model_note}{'; a quick trial' * options.quick}",
            uses_gpu=options.device == "cuda" and not measurement.note,
            commit=options.commit,
        )
        print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in numbers.items()))
    return True


if __name__ == "__main__":
    run_command(main)
