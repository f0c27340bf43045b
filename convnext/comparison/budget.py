"""How many epochs fit into a budget: of time, by the pace that is measured before the training, or of arithmetic."""

import re
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from convnext.comparison.flops import flops_by_epoch
from convnext.config import RunSettings
from convnext.data.loading.resident import ResidentImages, training_batches
from convnext.data.resizing import sizes_by_epoch
from convnext.data.sources import ImageSource
from convnext.errors import SettingsError
from convnext.training.interruption import StopSignals
from convnext.training.memory import settle_augment_on
from convnext.training.proxy import proxy_model
from convnext.training.resolve import cached, prepare
from convnext.training.trainer import Trainer

_UNITS = {"s": 1, "min": 60, "h": 3600, "flop": 1}
WARMUP = "optimizer.warmup_epochs"
_MOST_EPOCHS = 10_000
_WARMUP, _LEAST = 2, 4  # steps before the clock starts, and least that it measures
_EVALUATED = 1024  # images, at most, on which an evaluation is measured


@dataclass(frozen=True)
class Budget:
    """What one training may cost: ``amount`` seconds or floating-point operations."""

    amount: float
    unit: Literal["seconds", "flops"]

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """``90s``, ``30min``, ``2h`` or ``2e15flop``; SettingsError for anything else."""
        match = re.fullmatch(r"([\d.]+(?:e\+?\d+)?) ?(s|min|h|flop)s?", text.lower())
        try:
            amount = float(match[1]) * _UNITS[match[2]] if match else 0.0
        except ValueError:
            amount = 0.0
        if match is None or amount <= 0:
            raise SettingsError(f"--budget {text}: write a time or operations: 90s, 30min, 2h or 2e15flop")
        return cls(amount, "flops" if match[2] == "flop" else "seconds")


class Pace(BaseModel):
    """How fast a contender trains here.

    Attributes:
        precision: that its trainings compute in.
        steps: of an epoch.
        small_step: seconds of a step at the side at which training starts.
        full_step: seconds of a step at the side at which it ends.
        start: seconds of an evaluation beside its images: the start of the processes that read them.
        evaluation: seconds of the evaluation of an image.
        val: images of the validation split.
        test: images of the test split.
        reading: seconds for reading the training images at a size before the first step, where the device holds them.
    """

    model_config = ConfigDict(frozen=True)

    precision: Literal["fp32", "bf16", "fp16"]
    steps: int
    small_step: float
    full_step: float
    start: float
    evaluation: float
    val: int
    test: int
    reading: float = 0.0

    def seconds(self, settings: RunSettings) -> float:
        """Of a whole training with the settings: between the two sides a step takes as its pixels do."""
        data = settings.data
        sides = sizes_by_epoch(data, settings.epochs)
        first, last = data.first_size**2, data.last_size**2
        slope = (self.full_step - self.small_step) / (last - first) if last > first else 0.0
        training = sum(self.steps * (self.full_step + slope * (side**2 - last)) for side in sides)
        validations = ceil(settings.epochs / settings.eval_every) if self.val else 0
        images = self.val * validations + self.test
        sizes = 1 if settings.augment.crop == "resized" else len(set(sides))  # at which training images are held
        return self.reading * sizes + training + self.start * (validations + 1) + self.evaluation * images


def measure_pace(settings: RunSettings, seconds: float = 3.0) -> Pace:
    """Train for some ``seconds`` with real steps, and evaluate some images, in this process; nothing stays of it.

    Raises:
        UserError: settings or data that cannot be used.
    """
    settings, splits, accelerator = prepare(settings)
    splits = cached(splits, settings.data, accelerator.is_local_main_process)
    val, test = len(splits.val or ()), len(splits.test)
    evaluated = splits.test if splits.val is None or test > val else splits.val
    steps, reading = list[float](), list[float]()
    data, held = settings.data, settle_augment_on(settings, splits, accelerator).data.augment_on == "device"
    for side in sorted({data.first_size, data.last_size}):
        # As many of the images as are trained on at least; a step on others takes as long.
        changes = {"data.train_size": side, "data.start_size": None, "data.augment_on": "workers"}
        at_side = settings.replace(trackers=(), **changes)
        trainer = Trainer(at_side, splits, accelerator)
        with tempfile.TemporaryDirectory() as folder, StopSignals(Path(folder)) as signals:
            trainer.open(Path(folder))
            if held:
                started = time.perf_counter()
                trainer.resident = ResidentImages(at_side, splits, trainer.device, 0, False, _WARMUP + _LEAST)
                seconds_an_image = (time.perf_counter() - started) / trainer.resident.images_read
                reading.append(seconds_an_image * len(splits.train))
            steps.append(_seconds_a_step(trainer, signals, seconds))
            start, evaluation = _seconds_of_evaluation(trainer, evaluated, signals)
    return Pace(
        precision=settings.precision,
        steps=trainer.steps_per_epoch,
        small_step=steps[0],
        full_step=steps[-1],
        start=start,
        evaluation=evaluation,
        val=val,
        test=test,
        reading=max(reading, default=0.0),
    )


def _seconds_a_step(trainer: Trainer, signals: StopSignals, seconds: float) -> float:
    """The mean over so many seconds, at least, with the reading of the images."""
    images = trainer.resident or trainer.images
    start, steps = 0.0, -_WARMUP
    with training_batches(images, trainer.sampler, trainer.settings.data.workers, trainer.device) as stream:
        for batch in stream:
            if steps == 0:
                trainer.catch_up()
                start = time.perf_counter()
            trainer.step(batch, signals)
            if signals.received is not None:
                signals.stop()
            steps += 1
            if steps >= _LEAST and time.perf_counter() - start >= seconds:
                break
        trainer.catch_up()
    return (time.perf_counter() - start) / steps


def _seconds_of_evaluation(trainer: Trainer, source: ImageSource, signals: StopSignals) -> tuple[float, float]:
    """Of its start, and of an image: from an evaluation of few images and one of more."""
    times, counts = [], (1, min(len(source), _EVALUATED))
    for count in counts:
        trainer.splits = replace(trainer.splits, val=source.subset(np.arange(count)))
        start = time.perf_counter()
        trainer.predict("val", signals)
        times.append(time.perf_counter() - start)
    an_image = max(0.0, times[1] - times[0]) / max(1, counts[1] - counts[0])
    return times[0], an_image


def flops(settings: RunSettings, num_classes: int, images: int) -> float:
    """Of a whole training with the settings, whose model is resolved, on a data set of so many images; CheckpointError
    where they name a proxy that cannot be read."""
    proxy = None if settings.proxy_from is None else proxy_model(settings.proxy_from)
    trained = images * settings.batch_size // settings.drawn_batch_size
    return sum(flops_by_epoch(settings, num_classes, trained, proxy))


def fitted(
    settings: RunSettings, amount: float, cost: Callable[[RunSettings], float], keep_warmup: bool = False
) -> RunSettings:
    """The settings with as many epochs as cost no more than ``amount``, at least one, and with a warm-up that is as
    large a fraction of them as before, or that stays as it is."""

    def with_epochs(epochs: int) -> RunSettings:
        changed: RunSettings = settings.replace(epochs=epochs)
        if keep_warmup:
            return changed
        scaled: RunSettings = changed.replace(**{WARMUP: settings.optimizer.warmup_epochs * epochs / settings.epochs})
        return scaled

    fit = bisect_right(range(1, _MOST_EPOCHS + 1), amount, key=lambda epochs: cost(with_epochs(epochs)))
    return with_epochs(max(1, fit))
