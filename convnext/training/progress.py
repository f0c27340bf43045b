"""What a training run says of itself: a live display and lines on standard error."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import device, nn

from convnext import kernels
from convnext.config import RunSettings
from convnext.data.audit.check import BALANCING, MOST_IMBALANCE
from convnext.data.progress import PERIOD, duration, left
from convnext.data.splits import Splits
from convnext.models import registry
from convnext.output import counted, say
from convnext.runs.checkpoint import TrainingState
from convnext.training.loss import class_weights

_PERIOD = 0.5  # seconds from one update of the bar to the next


def announcement(
    settings: RunSettings, splits: Splits, model: nn.Module, where: device, folder: Path
) -> tuple[str, ...]:
    """What will be trained on what, and how."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held_out = f"{len(splits.val):,} validation, " if splits.val is not None else "no validation, "
    warmup, steps = settings.warmup_epochs, len(splits.train) // settings.drawn_batch_size
    arithmetic = f"{settings.precision} by {kernels.describe()}" if kernels.installed(model) else settings.precision
    split = f" in {settings.gradient_accumulation} parts" if settings.gradient_accumulation != 1 else ""
    sizes = f"{settings.data.image_size} px" + (f", trained at {size} px" if (size := settings.data.train_size) else "")
    held = " (that holds and augments the training images)" if settings.data.augment_on == "device" else ""
    return (
        *splits.notes,
        f"{registry.describe(settings.model)}, {parameters:,} parameters, on {where}{held} in {arithmetic}; "
        f"{len(splits.train):,} training, {held_out}{len(splits.test):,} test images of {len(splits.classes)} classes "
        f"at {sizes}",
        f"peak learning rate {settings.peak_lr:.3g} = {settings.optimizer.lr:g} x batch {settings.batch_size}{split} / "
        f"reference {settings.optimizer.reference_batch_size}; {counted(settings.epochs, 'epoch')} of "
        f"{counted(steps, 'step')}, {warmup:g} of warm-up; run folder {folder}",
        *_about_muon(settings),
        *_about_proxy(settings),
        *_about_classes(settings, splits),
    )


def _about_muon(settings: RunSettings) -> Iterator[str]:
    """What is of Muon alone: its own learning rate, or what another optimizer does not heed."""
    optimizer = settings.optimizer
    if optimizer.name == "muon":
        if (rate := optimizer.muon_relative_lr) is not None:
            peak = rate * settings.peak_lr / optimizer.lr
            yield (
                f"Muon's own peak learning rate {peak:.3g} = {rate:g} x batch {settings.batch_size} / reference "
                f"{optimizer.reference_batch_size} is a fraction of its weights"
            )
    elif unused := [f"optimizer.{name}" for name in ("muon_filters", "muon_relative_lr") if getattr(optimizer, name)]:
        yield f"for Muon alone, so without effect on {optimizer.name}: {', '.join(unused)}"


def _about_proxy(settings: RunSettings) -> Iterator[str]:
    """Which images are trained on, where a network chooses them."""
    if settings.proxy_from is not None:
        yield (
            f"of each {settings.drawn_batch_size:,} images the {settings.batch_size:,} are trained on that the network "
            f"of {settings.proxy_from} finds hardest"
        )


def _about_classes(settings: RunSettings, splits: Splits) -> Iterator[str]:
    """What each class counts, where the settings say so; else what to do about very unequal ones, where they are."""
    counts = {name: count for name, count in zip(splits.classes, splits.training_counts, strict=True) if count}
    most, fewest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    sizes = f"classes have {counts[fewest]:,} ({fewest}) to {counts[most]:,} ({most}) training images"
    weights = class_weights(settings, splits)
    if weights is not None:
        values = dict(zip(splits.classes, weights.tolist(), strict=True))
        yield f"{sizes}; their weights in the loss: {values[fewest]:.3g} and {values[most]:.3g}"
    if settings.data.sampler == "balanced":
        yield f"{sizes}; each class is drawn equally often"
    elif weights is None and counts[most] > MOST_IMBALANCE * counts[fewest]:
        yield f"{sizes}: {BALANCING} makes them count alike"


def epoch_line(metrics: dict[str, float], epochs: int) -> str:
    """The numbers of an epoch that has ended."""
    fields = [f"epoch {metrics['epoch']}/{epochs}"]
    for name in ("train", "val"):
        if f"{name}_loss" in metrics:
            accuracy = 100 * metrics[f"{name}_top1"]
            fields.append(f"{name} loss {metrics[f'{name}_loss']:.4f}, top-1 {accuracy:.2f} %")
    rate = f"{metrics['images_per_second']:,.0f} images/s"
    fields.append(f"lr {metrics['lr']:.2e}, {rate}, {duration(metrics['seconds'])}")
    return "; ".join(fields)


def early_stop_line(state: TrainingState, steps_per_epoch: int, settings: RunSettings) -> str:
    """Why a run stops before its last epoch, and which was the best."""
    metric, best = settings.monitor.replace("_", "-").replace("top1", "top-1"), state.best_value
    line = f"stopped early, after epoch {state.step // steps_per_epoch} of {settings.epochs}: "
    if state.best_step is None or best is None:
        return f"{line}no validation {metric} that is a number"
    value = f"{100 * best:.2f} %" if settings.monitor == "top1" else f"{best:.4f}"
    epoch = state.best_step // steps_per_epoch
    return f"{line}validation {metric} was best in epoch {epoch}, {value} (patience {settings.patience})"


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on, and the commit of the folder that we are in, if any."""
    numbers = {name: version(name) for name in ("convnext", "torch", "torchvision", "accelerate", "simplejpeg")}
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no repository
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        numbers["commit"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return numbers


class Display:
    """How far ``steps`` are, from ``start`` on: a bar where standard error is a terminal, else a line each minute by
    ``clock``; and lines of the run's own. Nothing unless ``shown``."""

    def __init__(
        self, steps: int, start: int, shown: bool = True, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._steps, self._start, self._shown, self._clock = steps, start, shown, clock
        terminal = shown and sys.stderr.isatty()
        self._period = _PERIOD if terminal else PERIOD
        columns = (TextColumn(f"{{task.{field}}}") for field in ("description", "fields[numbers]", "fields[left]"))
        description, numbers, time_left = columns
        self._bar = Progress(
            *(description, BarColumn(None), numbers, time_left),
            console=Console(stderr=True),
            disable=not terminal,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("training", total=steps, completed=start, numbers="", left="")
        self._began = self._since = clock()
        self._images = 0

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that is gone
            self._bar.stop()

    def line(self, text: str) -> None:
        """Print a line, above the bar."""
        if self._shown:
            say(text)

    def update(self, state: TrainingState, steps_per_epoch: int, epochs: int, images: int, lr: float) -> None:
        """Show the numbers after a step on ``images`` images, where it is time to."""
        self._images += images
        now = self._clock()
        if not self._shown or now - self._since < self._period:
            return
        rate, seen = self._images / (now - self._since), max(state.images, 1)
        self._since, self._images = now, 0
        epoch = f"epoch {(state.step - 1) // steps_per_epoch + 1}/{epochs}"
        numbers = f"loss {state.loss_sum / seen:.3f}  top-1 {100 * state.correct / seen:.2f} %  {rate:,.0f} images/s"
        time_left = left(now - self._began, state.step - self._start, self._steps - self._start)
        if self._bar.disable:
            step = f"step {(state.step - 1) % steps_per_epoch + 1:,}/{steps_per_epoch:,}"
            self.line(f"{epoch}, {step}: {numbers.replace('  ', ', ')}, lr {lr:.2e}, {time_left}")
        else:
            self._bar.update(self._task, completed=state.step, description=epoch, numbers=numbers, left=time_left)

    def resume_clock(self) -> None:
        """Leave the time since the last update out of the rate, after an evaluation."""
        self._since, self._images = self._clock(), 0
