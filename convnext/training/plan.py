"""What a run would do, and about how long it would take: for ``--dry-run``."""

import time
from itertools import islice

import numpy as np
from accelerate import Accelerator

from convnext.config import RunSettings
from convnext.data.loading.resident import ResidentImages, training_batches
from convnext.data.resizing import sizes_by_epoch
from convnext.training import faults
from convnext.training.interruption import StopSignals
from convnext.training.memory import settle_augment_on, settle_gradient_accumulation
from convnext.training.progress import announcement
from convnext.training.resolve import prepare
from convnext.training.trainer import Trainer

_WARMUP, _TIMED = 2, 4  # steps before the clock starts, and most steps that it measures
_ENOUGH = 20.0  # seconds after which no further step is measured


def plan(settings: RunSettings) -> tuple[RunSettings, list[str]]:
    """Resolve the settings, build the model, load the splits, and time a few steps; nothing is written.

    Weights to start from are not loaded, and images not cached: they make no step faster or slower in the long run.

    Returns:
        The settings as ``settings.json`` would have them; and what the run would say of itself, with its steps and an
        estimate of its minutes.

    Raises:
        UserError: settings or data that cannot be used, data that would have to be downloaded first, or a step for
            which there is not enough memory.
    """
    settings, splits, accelerator = prepare(settings, fetch=False)
    settings = settle_augment_on(settings, splits, accelerator)
    data = settings.data
    full_size: RunSettings = settings.replace(**{"data.image_size": data.last_size, "data.start_size": None})
    with faults.explained(settings, settings.output):
        trainer = Trainer(full_size, splits, accelerator)
        if data.augment_on == "device":
            trainer.resident = ResidentImages(full_size, splits, trainer.device, steps=_WARMUP + _TIMED)
        trainer.settings = settle_gradient_accumulation(full_size, trainer.raw_model, accelerator)
        trainer.choose_by(settings.proxy_from)
        step = _seconds_a_step(trainer, accelerator)
    settings = settings.replace(gradient_accumulation=trainer.settings.gradient_accumulation)
    sizes = sizes_by_epoch(data, settings.epochs)
    work = sum((size / data.last_size) ** 2 for size in sizes)  # epochs at the full size that cost as much
    # A forward pass is a third of a step.
    evaluated = len(splits.test) + (len(splits.val) * settings.epochs // settings.eval_every if splits.val else 0)
    seconds = step * (work * trainer.steps_per_epoch + evaluated / settings.batch_size / 3)
    lines = announcement(settings, splits, trainer.raw_model, trainer.device, settings.output / settings.name)
    estimate = (
        f"{trainer.total_steps:,} steps of {step:.3g} s at the full image size, measured here: about "
        f"{seconds / 60:,.1f} minutes with the evaluations; nothing was written"
    )
    return settings, [*lines, estimate]


def _seconds_a_step(trainer: Trainer, accelerator: Accelerator) -> float:
    """The median of a few steps, with the reading of their images."""
    workers = trainer.settings.data.workers
    times = [time.perf_counter()]
    loading = training_batches(trainer.resident or trainer.images, trainer.sampler, workers, trainer.device)
    with loading as stream, StopSignals(trainer.folder) as signals:
        for batch in islice(stream, _WARMUP + _TIMED):
            trainer.step(batch, signals)
            accelerator.wait_for_everyone()
            times.append(time.perf_counter())
            if times[-1] - times[0] > _ENOUGH:
                break
    steps = np.diff(times)
    return float(np.median(steps[min(_WARMUP, len(steps) - 1) :]))
