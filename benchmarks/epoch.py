"""The whole of an epoch (reading, step, average, validation, files) against bare steps of the same model, in one run.

The trainer trains on real images at their full size. Between its epochs the same model takes bare steps on a batch in
memory: forward, loss, backward, clipping and the optimizers. What workers read ahead meanwhile is used up before an
epoch's clock starts, with its first steps, so that validation and files weigh a little more than they do in a run.

    python benchmarks/epoch.py cifar10 --root DIR
    python benchmarks/epoch.py tiny-imagenet --root DIR --limit 25600 --precision bf16 --keep

``--keep`` writes it into ``results/speed/<machine>/``. With few images the files that end an epoch weigh more than they
do in a run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from command import positive, run_command
from record import short_name, this_machine, uncommitted, where, write_run
from run_json import ROOT
from training import bare_loop

from convnext import kernels, recipe
from convnext.config import RunSettings
from convnext.data.loading.loader import Batch
from convnext.data.sources import ImageSource
from convnext.data.splits import Splits
from convnext.errors import SettingsError
from convnext.storage.locks import locked
from convnext.training.interruption import StopSignals
from convnext.training.resolve import cached, prepare
from convnext.training.trainer import Trainer

LIMIT = 6400  # training images
AHEAD = 10  # steps of an epoch before its clock starts
BARE = 8  # bare steps after each epoch, and one that is not timed
T = TypeVar("T")


class _DoneError(Exception):
    """Enough epochs were measured."""


@dataclass
class Epochs:
    """What was measured.

    Attributes:
        bare: seconds of a bare step after each epoch, the median.
        epochs: seconds of each epoch.
        steps: that each of them has.
        settings: of the trainer.
        images: that it trains on.
        spent: seconds of all of them in steps and in validation.
        running: whether the clock of an epoch is.
        inside: whether it is in one of these, which ask for the folder themselves.
    """

    steps: int
    settings: RunSettings
    images: int
    bare: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=lambda: {"step": 0.0, "validation": 0.0})
    running: bool = False
    inside: bool = False

    @property
    def ratio(self) -> float:
        """The rate of images in an epoch over that of bare steps."""
        return self.steps * statistics.median(self.bare) / statistics.mean(self.epochs)


def some(source: ImageSource, fraction: float) -> ImageSource:
    """That fraction of the images, spread evenly."""
    return source.subset(np.linspace(0, len(source) - 1, max(1, round(fraction * len(source)))).astype(np.int64))


def limited(splits: Splits, limit: int) -> Splits:
    """So many training images, and the same fraction of the validation images."""
    fraction = min(1.0, limit / len(splits.train))
    assert splits.val is not None, "the recipes that are measured validate"
    return replace(splits, train=some(splits.train, fraction), val=some(splits.val, fraction))


def measure(
    name: str,
    root: Path,
    folder: bool,
    precision: str,
    limit: int = LIMIT,
    rounds: int = 4,
    augment_on: str | None = None,
) -> Epochs:
    """Train by the recipe of that name until ``rounds`` epochs are measured, after one that is not.

    Args:
        name: the recipe's.
        root: of its data.
        folder: whether that is a folder of class folders, and not the recipe's download.
        precision: as in `convnext.config.RunSettings`.
        limit: training images.
        rounds: epochs; as many as the recipe has from one validation to the next, or a multiple.
        augment_on: as in `convnext.config.DataSettings`; None for the recipe's.

    Raises:
        SettingsError: the recipe has too few epochs, or an epoch too few images.
    """
    changes: dict[str, Any] = {"data.root": root, "data.start_size": None, "data.cache": "disk", "device": "cpu"}
    changes |= {"data.name": "folder"} if folder else {}
    changes |= {"data.augment_on": augment_on} if augment_on else {}
    settings, splits, accelerator = prepare(recipe(name, precision=precision, trackers=(), **changes))
    check_lengths(settings, min(limit, len(splits.train)), rounds)
    splits = limited(cached(splits, settings.data, progress=True), limit)
    trainer = Trainer(settings, splits, accelerator)
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary)
        with locked(run), StopSignals(run) as signals:
            return watch(trainer, run, signals, rounds)


def check_lengths(settings: RunSettings, images: int, rounds: int) -> None:
    """See that so many epochs of so many images can be measured, before anything is trained.

    Raises:
        SettingsError: they cannot.
    """
    if settings.epochs < rounds + 2:  # the first is not measured, and what ends a measured one is the next
        most = settings.epochs - 2
        raise SettingsError(
            f"--rounds {rounds}: the recipe has {settings.epochs} epochs, of which {most} can be measured"
        )
    if images // settings.batch_size <= AHEAD:
        least = (AHEAD + 1) * settings.batch_size
        raise SettingsError(
            f"--limit: the clock of an epoch starts behind {AHEAD} batches of {settings.batch_size}, and {images:,} "
            f"training images have no more: at least {least:,} are needed"
        )


def watch(trainer: Trainer, run: Path, signals: StopSignals, rounds: int) -> Epochs:
    """Let the trainer train, and measure."""
    per_epoch = trainer.steps_per_epoch
    seen = Epochs(per_epoch - AHEAD, trainer.settings, len(trainer.splits.train))
    bare = bare_loop(trainer, random_batch(trainer))
    since = 0.0

    def before_step() -> None:
        nonlocal since
        if seen.inside:
            return
        epoch, step = divmod(trainer.state.step, per_epoch)
        if step == 0 and seen.running:
            seen.epochs.append(time.perf_counter() - since)
            seen.running = False
        if step == 0 and epoch >= 1:
            seen.bare.append(statistics.median(timed_steps(bare)))
        if len(seen.epochs) == rounds:
            raise _DoneError
        if step == AHEAD and epoch >= 1:
            since, seen.running = time.perf_counter(), True

    # The instance's own, so that the class stays as it is.
    vars(trainer).update(step=timed(trainer.step, seen, "step"), predict=timed(trainer.predict, seen, "validation"))
    trainer.open(run, before_step)
    seen.settings = trainer.settings
    try:
        with trainer.tracker:
            trainer.fit(signals)
    except _DoneError:
        return seen
    raise SettingsError(
        f"the training stopped early, after {len(seen.epochs)} epochs that were measured: ask for fewer"
    )


def random_batch(trainer: Trainer) -> Batch:
    """As large as the trainer's."""
    size, count = trainer.settings.data.image_size, trainer.settings.batch_size
    images = torch.randint(0, 256, (count, trainer.splits.channels, size, size), dtype=torch.uint8)
    labels = torch.arange(count) % len(trainer.splits.classes)
    return Batch(images.contiguous(memory_format=torch.channels_last), labels, torch.arange(count), [])


def timed_steps(step: Callable[[], object]) -> Iterable[float]:
    """Seconds of bare steps."""
    step()
    for _ in range(BARE):
        started = time.perf_counter()
        step()
        yield time.perf_counter() - started


def timed(function: Callable[..., T], seen: Epochs, name: str) -> Callable[..., T]:
    """The function, whose seconds are added up."""

    def call(*arguments: Any) -> T:
        started, seen.inside = time.perf_counter(), True
        try:
            return function(*arguments)
        finally:
            seen.inside = False
            seen.spent[name] += (time.perf_counter() - started) * seen.running

    return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=["cifar10", "cifar100", "tiny-imagenet", "fashion-mnist"])
    parser.add_argument("--root", type=Path, required=True, help="of the recipe's data")
    parser.add_argument("--folder", action="store_true", help="the data is a folder of class folders")
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--augment-on", choices=["auto", "workers", "device"], help="in place of the recipe's")
    parser.add_argument("--limit", type=positive, default=LIMIT, help="training images")
    parser.add_argument("--rounds", type=positive, default=4, help="epochs")
    parser.add_argument("--keep", action="store_true", help="write a folder in results/speed/<machine>/")
    options = parser.parse_args()
    if options.keep and (problem := uncommitted()):
        parser.error(problem)
    started = time.monotonic()
    asked = options.precision, options.limit, options.rounds, options.augment_on
    seen = measure(options.recipe, options.root, options.folder, *asked)
    whole, step = statistics.mean(seen.epochs), statistics.median(seen.bare)
    spent = {name: seconds / len(seen.epochs) / whole for name, seconds in seen.spent.items()}
    on, precision = seen.settings.data.augment_on, seen.settings.precision
    print(f"{options.recipe}, {precision}, augmented on {on}; {where('cpu')}")
    print(f"{len(seen.epochs)} epochs of {seen.steps} steps")
    print(f"epoch {whole:.2f} s, of which steps {spent['step']:.1%}, validation {spent['validation']:.1%}")
    print(f"bare step {1e3 * step:.1f} ms; ratio: {seen.ratio:.3f} of the bare steps' rate")
    if options.keep:
        folder = ROOT / "results" / "speed" / short_name(this_machine(uses_gpu=False))
        milliseconds = {"ours_ms": round(1e3 * whole / seen.steps, 1), "bare_ms": round(1e3 * step, 1)}
        data = f"recipe {options.recipe}, {seen.images:,} training images at full size"
        write_run(
            folder / f"epoch-{options.recipe}-{precision}-{on}",
            {"ratio_bare": round(seen.ratio, 3)} | milliseconds,
            data=f"{data}{', files in class folders' * options.folder}; per step of an epoch",
            seconds=time.monotonic() - started,
            libraries=("torch", "torchvision"),
            note=f"{len(seen.epochs)} epochs, augmented on {on}; {torch.get_num_threads()} threads; ours by "
            f"{kernels.describe()}",
            uses_gpu=False,
        )


if __name__ == "__main__":
    run_command(main)
