"""One optimizer step: the gradient over the images of all processes, and the update by it, which is left out where a
number is not finite.

On CUDA the host hands out work and does not wait for it: the device itself decides whether the update is made, and the
host reads a step's numbers when the next step is under way. Elsewhere, where reading costs nothing, the host decides.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, device, nn
from torch.optim import Optimizer

from convnext import distributed
from convnext.config import RunSettings
from convnext.data.loading.loader import seed_for
from convnext.training import gradients
from convnext.training.optimizers import WeightAverage, begin_momentum, set_learning_rate, step_where

_SMALL = 10_000_000  # parameters
_SIZES = 32  # of images and micro-batches that are compiled: twice those that a run can have


def decides_on_device(where: device) -> bool:
    """Whether the device decides about updates: where a number can only be read when all work before it is done."""
    return where.type == "cuda"


def compiled(model: nn.Module, settings: RunSettings, where: device, processes: int) -> nn.Module:
    """The model as `torch.compile` makes it, once for each size of images, which it then knows.

    On CUDA a model so small that starting its kernels takes longer than they do is recorded as CUDA graphs, where one
    process learns from a batch at once: a graph's gradients are gone when it runs again.
    """
    small = sum(parameter.numel() for parameter in model.parameters()) <= _SMALL
    graphs = small and where.type == "cuda" and processes == 1 and settings.gradient_accumulation == 1
    mode = "reduce-overhead" if graphs else "default"
    torch._dynamo.config.recompile_limit = _SIZES
    return cast(nn.Module, torch.compile(model, dynamic=False, mode=mode))


class Numbers:
    """Numbers on their way from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        on_cuda = numbers.is_cuda
        self._values = torch.empty(numbers.shape, pin_memory=on_cuda).copy_(numbers, non_blocking=on_cuda)
        self._arrival = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
        if self._arrival is not None:
            self._arrival.record()

    def read(self) -> list[float]:
        """The numbers, as soon as they are there."""
        if self._arrival is not None:
            self._arrival.synchronize()
        values: list[float] = self._values.tolist()
        return values


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
        step: its number in the run, from 1.
        lr: its learning rate.
        images: ``(n, C, H, W)``, normalized, those of this process.
        count: images of all processes.
        parameters: names of those that have a gradient.
        numbers: sum of the losses, right answers, and norms of the whole gradient and of each parameter's.
    """

    step: int
    lr: float
    images: Tensor
    count: int
    parameters: list[str]
    numbers: Numbers


class Stepper:
    """Takes steps.

    Args:
        accelerator: the processes, the device and the precision.
        model: as the accelerator prepared it.
        raw_model: the same as it was before.
        optimizers: of its parameters.
        average: of its weights, if there is one.
        class_weights: see `convnext.training.loss.cross_entropy`.
        on_device: see `decides_on_device`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        raw_model: nn.Module,
        optimizers: list[Optimizer],
        average: WeightAverage | None,
        class_weights: Tensor | None,
        on_device: bool,
    ) -> None:
        self.accelerator, self.model, self.raw_model = accelerator, model, raw_model
        self.optimizers, self.average = optimizers, average
        self.class_weights, self.on_device = class_weights, on_device
        self._parameters = list(raw_model.named_parameters())
        self._buffers = list(raw_model.buffers())  # batch norm's; ConvNeXt has none
        if on_device:
            begin_momentum(optimizers)
            if average is not None:
                average.n_averaged = average.n_averaged.to(accelerator.device)

    def seed(self, seed: int, step: int) -> None:
        """Begin the numbers of step number ``step``, which depend on it, the ``seed`` and the process alone."""
        number = seed_for(seed, step, self.accelerator.process_index, 0)
        if self.accelerator.device.type == "cpu":  # without those of other devices, which takes ten times as long
            torch.default_generator.manual_seed(number)
        else:
            torch.manual_seed(number)

    def take(
        self, settings: RunSettings, step: int, lr: float, batch: tuple[Tensor, Tensor, Tensor], count: int, total: int
    ) -> Taken:
        """Step number ``step``, on ``count`` images of this process and ``total`` of all; see
        `convnext.training.gradients.backward`."""
        set_learning_rate(self.optimizers, lr)
        buffers = [buffer.clone() for buffer in self._buffers]
        with self._stance(settings, count):
            sums = gradients.backward(self.accelerator, self.model, settings, batch, count, total, self.class_weights)
        trained = {name: parameter for name, parameter in self._parameters if parameter.grad is not None}
        norms = gradients.norms(self.accelerator, list(trained.values()), settings.optimizer.clip_norm)
        values = torch.cat([distributed.total(self.accelerator, sums), norms])
        numbers = Numbers(values)
        if self.on_device:
            self._update_where(values[:3].isfinite().all(), buffers)
        elif are_finite(numbers.read()):
            self._update()
        else:
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # lowers the scale where the step was left out, as fp16 needs it
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return Taken(step, lr, batch[0], total, list(trained), numbers)

    def _stance(self, settings: RunSettings, count: int) -> AbstractContextManager[object]:
        """Nothing is compiled for a batch that lacks images which could not be read."""
        whole = distributed.own_count(self.accelerator, settings.batch_size)
        return torch.compiler.set_stance("force_eager") if settings.compile and count < whole else nullcontext()

    def _update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.raw_model)

    def _update_where(self, finite: Tensor, buffers: list[Tensor]) -> None:
        """Update where the device's flag is true; else leave everything as it was, with the ``buffers`` of before."""
        for buffer, before in zip(self._buffers, buffers, strict=True):
            torch.where(finite, buffer, before, out=buffer)
        step_where(self.optimizers, finite)
        if self.average is not None:
            self.average.update_where(self.raw_model, finite)


def are_finite(numbers: list[float]) -> bool:
    """Whether a step with these `Taken.numbers` was an update."""
    return all(map(math.isfinite, numbers[:3]))
