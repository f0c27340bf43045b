"""Our training step against a plain loop around timm's model of the same size, or against a bare loop around our own.

Each has a process of its own, since they differ in the memory allocator's settings too, and they take turns, one
step each; each is judged by its median. All train on the same random images in memory.

timm   what a PyTorch user writes: forward, cross entropy, backward, AdamW, zero_grad, on normalized images.
bare   our model, optimizer, arithmetic and allocator settings in such a loop: what our trainer itself costs. Ours also
       draws its seed, sets the learning rate, sums loss and accuracy, sees that the gradient is finite, and asks for
       signals.

    python benchmarks/training.py
    python benchmarks/training.py --peer bare
    python benchmarks/training.py --depths 3 3 9 3 --dims 96 192 384 768 --size 224 --patch 4 --batch 16
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from peers import timm_convnext
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import kernels, recipe
from convnext.data.loading.loader import Batch
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.devices import make_accelerator, pick_device
from convnext.models import registry
from convnext.training.interruption import StopSignals
from convnext.training.optimizers import make_optimizers
from convnext.training.resolve import resolve_settings
from convnext.training.trainer import Trainer

CLASSES = 10
WARMUP = 5  # steps that allocate, compile, choose algorithms and record CUDA graphs
Step = Callable[[], object]


def make_trainer(options: argparse.Namespace) -> Trainer:
    """Our trainer over random images, without its extras: no moving average, no augmentation on the device."""
    pixels = np.random.default_rng(0).integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8)
    source = ArraySource(pixels, np.arange(options.batch) % CLASSES, channels=3)
    splits = Splits(tuple(map(str, range(CLASSES))), source, None, source, (0.5,) * 3, (0.25,) * 3)
    model = {"depths": options.depths, "dims": options.dims, "patch_size": options.patch, "overlap": False}
    changes: dict[str, Any] = {"ema_decay": None, "batch_size": options.batch, "epochs": 10_000}
    changes |= {"precision": options.precision, "device": options.device, "optimizer": {"name": "adamw"}}
    changes |= {"compile": options.compile}
    changes |= {"data": {"image_size": options.size, "start_size": None}, "augment": {"cutmix": 0.0}}
    settings = recipe("cifar10", **changes, model=model)
    accelerator = make_accelerator(settings)
    settings, splits = resolve_settings(settings, splits, accelerator)
    trainer = Trainer(settings, splits, accelerator)
    return trainer


def batch_of(trainer: Trainer) -> Batch:
    """All of the trainer's images."""
    source = trainer.splits.train
    images = torch.from_numpy(np.stack([source.raw(index) for index in range(len(source))]))
    images, targets = images.permute(0, 3, 1, 2), torch.arange(len(source)) % CLASSES
    if trainer.device.type == "cuda":  # as the trainer's own are
        images, targets = images.pin_memory(), targets.pin_memory()
    return Batch(images, targets, torch.arange(len(source)), [])


def our_step(options: argparse.Namespace, stack: ExitStack) -> Step:
    """The trainer's."""
    trainer = make_trainer(options)
    batch, signals = batch_of(trainer), stack.enter_context(StopSignals(trainer.folder))
    return lambda: trainer.step(batch, signals)


def bare_step(options: argparse.Namespace, _: ExitStack) -> Step:
    """The same computation in the fewest lines."""
    trainer = make_trainer(options)
    settings, batch = trainer.settings, batch_of(trainer)
    torch.manual_seed(0)
    model = registry.build(settings.model, CLASSES).to(trainer.device).to(memory_format=torch.channels_last).train()
    kernels.install(model)
    (optimizer,) = make_optimizers(model, settings.optimizer)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model) if options.compile else model

    def step() -> None:
        images = trainer.normalize(batch.images.to(trainer.device, memory_format=torch.channels_last))
        with trainer.accelerator.autocast():
            logits = compiled(images).float()
        loss = F.cross_entropy(logits, batch.targets.to(trainer.device), label_smoothing=settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm or 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def timm_model(options: argparse.Namespace) -> nn.Module:
    """timm's ConvNeXt of the same size."""
    return timm_convnext(options.depths, options.dims, options.patch, CLASSES)


def timm_step(options: argparse.Namespace, _: ExitStack) -> Step:
    """A plain loop's, in PyTorch's default memory format and with the allocator's default settings."""
    device = pick_device(options.device)
    torch.manual_seed(0)
    model = timm_model(options).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model) if options.compile else model
    images = torch.randn(options.batch, 3, options.size, options.size).to(device)
    targets = (torch.arange(options.batch) % CLASSES).to(device)
    dtype = torch.float16 if options.precision == "fp16" else torch.bfloat16

    def step() -> None:
        with torch.autocast(device, dtype, enabled=options.precision != "fp32"):
            loss = F.cross_entropy(compiled(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


STEPS: dict[str, Callable[[argparse.Namespace, ExitStack], Step]] = {
    "ours": our_step,
    "bare": bare_step,
    "timm": timm_step,
}


def run_contestant(name: str, options: argparse.Namespace, pipe: Connection) -> None:
    """In a process of its own: take a step whenever asked, and answer how many seconds it took."""
    with ExitStack() as stack:
        step = STEPS[name](options, stack)
        for _ in range(WARMUP):
            step()
        pipe.send((torch.get_num_threads(), kernels.describe()))
        while pipe.recv():
            started = time.perf_counter()
            step()
            pipe.send(time.perf_counter() - started)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], str]:
    """Seconds of each step of both, and how they were computed."""
    context = multiprocessing.get_context("spawn")  # a forked process would inherit the allocator's settings
    pipes: dict[str, Connection] = {}
    processes = []
    for name in ("ours", options.peer):
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=run_contestant, args=(name, options, theirs), daemon=True))
        processes[-1].start()
    threads, arithmetic = next(iter([pipe.recv() for pipe in pipes.values()]))  # when all are ready
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(options.rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return seconds, f"{threads} threads, {arithmetic}"


def check_same_size(options: argparse.Namespace) -> None:
    """Refuse to compare models of different size."""
    settings = make_trainer(options).settings.model
    ours, theirs = (
        sum(parameter.numel() for parameter in model.parameters())
        for model in (registry.build(settings, CLASSES), timm_model(options))
    )
    if ours != theirs:
        raise SystemExit(f"the models differ: {ours:,} parameters and {theirs:,}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="timm", choices=["timm", "bare"])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 2])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--compile", action="store_true", help="torch.compile for both")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    options.device = pick_device(options.device)
    if options.peer == "timm":
        check_same_size(options)
    seconds, how = measure(options)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    where = f"{options.device} in {options.precision}{', compiled' * options.compile}, {how}"
    print(f"batch {options.batch} at {options.size} px on {where}; {options.rounds} rounds")
    for name, value in median.items():
        print(f"{name}: {1e3 * value:.1f} ms a step, {options.batch / value:,.0f} images/s")
    print(f"ratio: {median[options.peer] / median['ours']:.3f} {options.peer}/ours time")


if __name__ == "__main__":
    main()
