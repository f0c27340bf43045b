"""Which arithmetic ``--precision auto`` is on a CPU: bf16 where it is worth it on this machine for this model."""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

import torch
from torch.nn import functional as F

from convnext import kernels
from convnext.config import RunSettings
from convnext.data.splits import Splits
from convnext.devices import autocast_of
from convnext.models import registry
from convnext.output import say
from convnext.storage.downloads import cache_folder
from convnext.storage.measurements import cpu_name, remember, remembered

NAMES = ("fp32", "bf16")
_WORTH = 1.2  # times as fast as fp32, from which on bf16 is taken
LONG = 3e13  # operations of a run, some five minutes of a CPU, below which it is computed in fp32 without measuring
_STEP = 1e10  # operations of a step that is measured, as far as images are whole
_ROUNDS = 3
_LIBRARIES = ("convnext", "torch")


def cpu_precision(
    settings: RunSettings,
    splits: Splits,
    measure: Callable[[RunSettings, int, int], dict[str, float]] | None = None,
) -> str:
    """``"fp32"`` or ``"bf16"``, for a run on a CPU, and a line that says why where that was measured.

    Short runs, modules of one's own and what torch.compile compiles are computed in fp32, without measuring.

    Args:
        settings: resolved, but for the precision.
        splits: the data.
        measure: gives the seconds of a step in each of `NAMES` with so many images and classes; None for `measured`.
    """
    if settings.compile or settings.model.name == registry.OWN:
        return "fp32"
    classes = len(splits.classes)
    # Forward, and twice as much backward; a multiplication and an addition each.
    operations = 6 * registry.cost(settings.model, settings.data.last_size, classes)[1]
    if operations * len(splits.train) * settings.epochs < LONG:
        return "fp32"
    count = max(2, min(settings.batch_size, round(_STEP / operations)))  # batch norm wants two
    machine = cpu_name(), os.cpu_count(), torch.get_num_threads(), kernels.describe(), *map(version, _LIBRARIES)
    work = settings.model.model_dump(mode="json"), settings.data.last_size, settings.channels_last, classes, count
    path = cache_folder() / "precision" / f"{hashlib.sha256(repr((machine, work)).encode()).hexdigest()[:32]}.json"
    seconds = remembered(path, NAMES)
    if seconds is None or len(seconds) < len(NAMES):
        seconds = (measure or measured)(settings, count, classes)
        with suppress(OSError):  # it is measured again then
            remember(path, seconds)
    ratio = seconds["fp32"] / seconds["bf16"]
    chosen = "bf16" if ratio >= _WORTH else "fp32"
    other = "--precision fp32 for the other" if chosen == "bf16" else f"taken from {_WORTH:g} on"
    say(f"precision {chosen}: bf16 is {ratio:.2f} times as fast as fp32 here for this model, measured once; {other}")
    return chosen


def measured(settings: RunSettings, count: int, classes: int) -> dict[str, float]:
    """Seconds, by precision, of a forward and a backward pass on ``count`` random images: the fastest of its turns, in
    which the machine did least else."""
    size = settings.data.last_size
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    with torch.random.fork_rng(devices=[]):
        model = registry.build(settings.model, classes).to(memory_format=layout).train()
        kernels.install(model)
        images = torch.randn(count, settings.model.in_channels or 3, size, size).contiguous(memory_format=layout)
        labels = torch.arange(count) % classes
        for _ in range(1 + _ROUNDS):
            for name, values in times.items():
                started = time.perf_counter()
                with autocast_of(name, torch.device("cpu"))():
                    logits = model(images)
                F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
                values.append(time.perf_counter() - started)
    return {name: min(values[1:]) for name, values in times.items()}  # the first allocates
