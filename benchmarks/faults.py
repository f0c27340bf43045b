"""How much is lost when training is killed: runs that are killed at random again and again, and resumed, against the
same runs left alone.

A run is killed about five times, each time in one of these ways, with a random number of data workers:

- step: SIGKILL as a random step begins
- save: SIGKILL right before a random change of the disk, most of which belong to a checkpoint
- moment: SIGKILL at a random time
- stop: SIGTERM in a random step, which is answered by a checkpoint
- power: SIGKILL as above, and the newest file of the newest checkpoint is cut short, as by a power cut

It has survived if SHA-256 of every tensor of its checkpoints, where training stands, the metrics of every epoch and the
test report are those of the run left alone. Exit status 1 if any has not.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --kills 100 --seed 0
"""

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from command import positive, run_command

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, which know how to kill

from convnext.errors import UserError
from convnext.runs.checkpoint import is_complete
from tests.support.killing import STEPS, TINY, Point, Started, result, run, steps

KINDS = ("step", "save", "moment", "stop", "power")
VARIANTS: dict[str, tuple[str, ...]] = {
    "AdamW": (),
    "Muon, bf16": ("--optimizer.name", "muon", "--precision", "bf16"),
    "SGD, repeats, mixing by image": (
        *("--optimizer.name", "sgd", "--optimizer.lr", "0.1"),
        *("--augment.repeats", "2", "--augment.mix-by", "element"),
    ),
}
RUN = Path("runs") / "digits"
AHEAD = 6  # steps from one kill to the next, at most


def strike(kind: str, args: list[object], folder: Path, seconds: float, draw: random.Random) -> bool:
    """Start or resume a run and kill it; False where it ended before that.

    Args:
        kind: one of `KINDS`.
        args: of the command.
        folder: where it runs.
        seconds: that a whole run takes.
        draw: for everything random.

    Raises:
        RuntimeError: it ended in another way.
    """
    done = max(steps(folder / RUN), default=0)
    next_step = done + draw.randint(1, AHEAD)
    if kind == "moment":
        started = Started(args, folder)
        started.process.join(draw.uniform(0, seconds))
        started.process.kill()
        ended, expected = started.end(), -signal.SIGKILL
    else:
        number = signal.SIGTERM if kind == "stop" else signal.SIGKILL
        disk = draw.randint(1, 25) if kind == "save" else 0
        ended = run(args, folder, Point(0 if disk and draw.random() < 0.3 else min(next_step, STEPS), disk, number))
        expected = 128 + number if kind == "stop" else -number
    if ended.status not in (0, expected):
        raise RuntimeError(f"ended with status {ended.status}: {ended.text}")
    return ended.status != 0


def cut_newest(run_folder: Path, draw: random.Random) -> bool:
    """Cut the newest file of the newest checkpoint short, where there is an older one to go on from."""
    whole = [path for path in sorted(run_folder.glob("checkpoints/step-*")) if is_complete(path)]
    if len(whole) < 2:
        return False
    newest = max(whole[-1].iterdir(), key=lambda path: path.stat().st_mtime_ns)
    os.truncate(newest, draw.randrange(newest.stat().st_size))
    return True


def kill_again_and_again(
    options: tuple[str, ...], folder: Path, most: int, seconds: float, draw: random.Random, deaths: list[str]
) -> None:
    """Kill a run up to ``most`` times, and bring it to its end; the kinds of its deaths are added to ``deaths``.

    Raises:
        RuntimeError: it could not go on.
    """
    folder.mkdir()
    saves = ("--save-every-steps", draw.choice((1, 2, 3, 5)), "--keep", draw.choice((2, 3)))
    while len(deaths) < most:
        kind = draw.choice(KINDS)
        args: list[object] = [*TINY, *options, *saves, "--data.workers", draw.choice((0, 0, 0, 1, 2)), "--resume"]
        if not strike(kind, args, folder, seconds, draw):
            return
        if kind == "power" and not cut_newest(folder / RUN, draw):
            kind = "step"
        deaths.append(kind)
    ended = run([*TINY, *options, "--resume"], folder)
    if ended.status:
        raise RuntimeError(f"ended with status {ended.status}: {ended.text}")


def left_alone(folder: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """What the runs end with that are not killed, and the seconds that the last of them took."""
    results: dict[str, dict[str, Any]] = {}
    seconds = 0.0
    for name, options in VARIANTS.items():
        started = time.perf_counter()
        ended = run([*TINY, *options], folder / name)
        seconds = time.perf_counter() - started
        if ended.status:
            raise RuntimeError(f"ended with status {ended.status}: {ended.text}")
        results[name] = result(folder / name / RUN)
    return results, seconds


def main() -> int:
    """Kill, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=positive, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, started = random.Random(options.seed), time.perf_counter()
    survived, lost, runs = Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as temporary:
        expected, seconds = left_alone(Path(temporary))
        while (left := options.kills - survived.total() - lost.total()) > 0:
            name, folder, deaths = draw.choice(list(VARIANTS)), Path(temporary) / str(runs), list[str]()
            runs += 1
            try:
                kill_again_and_again(VARIANTS[name], folder, min(left, draw.randint(3, 7)), seconds, draw, deaths)
                same = result(folder / RUN) == expected[name]
            except (RuntimeError, UserError) as error:
                print(error, file=sys.stderr)
                same = False
            (survived if same else lost).update(deaths)
            print(f"run {runs} ({name}): {', '.join(deaths)}: {'survived' if same else 'LOST'}", file=sys.stderr)
            if not same and not deaths:
                raise SystemExit("a run that nobody killed could not go on")
    print(
        f"{survived.total() + lost.total()} kills in {runs} runs of {STEPS} steps, seed {options.seed}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, {time.perf_counter() - started:.0f} s\n\n"
        "| killed | survived | lost |\n| --- | --- | --- |"
    )
    for kind in KINDS:
        print(f"| {kind} | {survived[kind]} | {lost[kind]} |")
    print(f"| all | {survived.total()} | {lost.total()} |")
    return 1 if lost else 0


if __name__ == "__main__":
    run_command(main)
