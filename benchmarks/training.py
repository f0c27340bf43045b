"""Our training step against loops around timm's and torchvision's models of the same size, or around our own.

Each contestant has a process of its own, and they take turns: see ``turns.py``. Each is judged by its median. All train
on the same random images in memory.

ours, ours-compiled   the trainer's step. It also draws its seed, sets the learning rate, clips the gradient, sums loss
                      and accuracy, sees that the gradient is finite, copies images to the device and normalizes them.
ours-fp32             the same in fp32, whatever the precision of the others: what ours gains by a lower one.
bare                  our model, optimizer, arithmetic and allocator settings in a loop: what our trainer itself costs.
timm                  what a PyTorch user writes: forward, cross entropy, backward, AdamW, loss.item(), on images that
                      are normalized and on the device.
timm-expert           the same by one who knows: channels_last, freed memory kept, fused AdamW, the loss left on the
                      device, and on CUDA cuDNN's algorithms chosen by measurement.
timm-compiled         that, by torch.compile, as ours-compiled is: on CUDA a small model is recorded as CUDA graphs.
torchvision           torchvision's model in the expert's loop; its stem has patch size 4.

    python benchmarks/training.py
    python benchmarks/training.py --peers bare
    python benchmarks/training.py --depths 3 3 9 3 --dims 96 192 384 768 --size 224 --patch 4 --batch 16 \
        --precision bf16 --peers timm timm-expert timm-compiled torchvision --json
"""

import argparse
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from command import positive, run_command
from peers import timm_convnext, torchvision_convnext
from record import where
from torch import Tensor, nn
from torch.nn import functional as F
from turns import ContestantError, Step, Times, take_turns

from convnext import kernels, recipe
from convnext.data.loading.loader import Batch
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.devices import autocast_of, keep_freed_memory, make_accelerator, pick_device
from convnext.evaluation.evaluator import prepare_model
from convnext.models import registry
from convnext.training.interruption import StopSignals
from convnext.training.optimizers import make_optimizers
from convnext.training.resolve import resolve_settings
from convnext.training.step import compiled
from convnext.training.trainer import Trainer

CLASSES = 10
TURN = {"cpu": 0.0}  # seconds: a step on a CPU; elsewhere as many as fit, of which the device is waited for once
TURN_ELSEWHERE = 0.5


@dataclass(frozen=True)
class Case:
    """What is trained: the model's ``depths``, ``dims`` and ``patch`` size, the images' ``size`` in pixels, the
    ``batch``, ``precision`` (fp32, bf16 or fp16) and ``device`` (cpu, cuda or mps)."""

    depths: tuple[int, ...] = (2, 4, 2)
    dims: tuple[int, ...] = (64, 128, 256)
    patch: int = 2
    size: int = 32
    batch: int = 256
    precision: str = "fp32"
    device: str = "cpu"


def make_trainer(case: Case, compile: bool = False) -> Trainer:
    """Our trainer over random images, without its extras: no moving average, no augmentation on the device."""
    pixels = np.random.default_rng(0).integers(0, 256, (case.batch, case.size, case.size, 3), np.uint8)
    source = ArraySource(pixels, np.arange(case.batch) % CLASSES, channels=3)
    splits = Splits(tuple(map(str, range(CLASSES))), source, None, source, (0.5,) * 3, (0.25,) * 3)
    model = {"depths": case.depths, "dims": case.dims, "patch_size": case.patch, "overlap": False}
    changes: dict[str, Any] = {"ema_decay": None, "batch_size": case.batch, "epochs": 10_000}
    changes |= {"precision": case.precision, "device": case.device, "optimizer": {"name": "adamw"}}
    changes |= {"compile": compile}
    changes |= {"data": {"image_size": case.size, "start_size": None}, "augment": {"cutmix": 0.0}}
    settings = recipe("cifar10", **changes, model=model)
    accelerator = make_accelerator(settings)
    settings, splits = resolve_settings(settings, splits, accelerator)
    return Trainer(settings, splits, accelerator)


def batch_of(trainer: Trainer) -> Batch:
    """All of the trainer's images."""
    source = trainer.splits.train
    images = torch.from_numpy(np.stack([source.raw(index) for index in range(len(source))]))
    images, targets = images.permute(0, 3, 1, 2), torch.arange(len(source)) % CLASSES
    if trainer.device.type == "cuda":  # as the trainer's own are
        images, targets = images.pin_memory(), targets.pin_memory()
    return Batch(images, targets, torch.arange(len(source)), [])


def our_step(case: Case, stack: ExitStack, compile: bool = False) -> Step:
    """The trainer's."""
    trainer = make_trainer(case, compile)
    batch, signals = batch_of(trainer), stack.enter_context(StopSignals(trainer.folder))
    return lambda: trainer.step(batch, signals)


def our_fp32_step(case: Case, stack: ExitStack) -> Step:
    """The trainer's, in fp32."""
    return our_step(replace(case, precision="fp32"), stack)


def bare_step(case: Case, _: ExitStack) -> Step:
    """The same computation in the fewest lines."""
    trainer = make_trainer(case)
    return bare_loop(trainer, batch_of(trainer))


def bare_loop(trainer: Trainer, batch: Batch) -> Step:
    """A step on the batch of the trainer's model, initial weights, optimizers and arithmetic."""
    settings = trainer.settings
    torch.manual_seed(0)
    model = registry.build(settings.model, len(trainer.splits.classes)).to(trainer.device)
    model.to(memory_format=torch.channels_last).train()
    prepare_model(model, trainer.info)
    optimizers = make_optimizers(model, settings.optimizer)

    def step() -> None:
        images = trainer.normalize(batch.images.to(trainer.device, memory_format=torch.channels_last))
        with trainer.accelerator.autocast():
            logits = model(images).float()
        loss = F.cross_entropy(logits, batch.targets.to(trainer.device), label_smoothing=settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm or 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss.item()

    return step


def timm_model(case: Case) -> nn.Module:
    """timm's ConvNeXt of the same size."""
    return timm_convnext(case.depths, case.dims, case.patch, CLASSES)


def torchvision_model(case: Case) -> nn.Module:
    """torchvision's ConvNeXt of the same size."""
    return torchvision_convnext(case.depths, case.dims, CLASSES)


def peer_step(model_of: Callable[[Case], nn.Module], expert: bool, compile: bool, case: Case, _: ExitStack) -> Step:
    """A loop's around a model of others: in PyTorch's default memory format and with the allocator's default settings,
    or as an ``expert`` writes it."""
    if expert:
        keep_freed_memory()
        torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if expert else torch.contiguous_format
    torch.manual_seed(0)
    model = model_of(case).to(case.device).to(memory_format=layout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=expert or None)
    classify: Callable[[Tensor], Tensor] = model
    if compile:
        classify = compiled(model, recipe("cifar10"), torch.device(case.device), processes=1)
    images = torch.randn(case.batch, 3, case.size, case.size).to(case.device).to(memory_format=layout)
    targets = (torch.arange(case.batch) % CLASSES).to(case.device)
    autocast = autocast_of(case.precision, torch.device(case.device))

    def step() -> None:
        with autocast():
            loss = F.cross_entropy(classify(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not expert:
            loss.item()

    return step


CONTESTANTS: dict[str, Callable[[Case, ExitStack], Step]] = {
    "ours": our_step,
    "ours-compiled": partial(our_step, compile=True),
    "ours-fp32": our_fp32_step,
    "bare": bare_step,
    "timm": partial(peer_step, timm_model, False, False),
    "timm-expert": partial(peer_step, timm_model, True, False),
    "timm-compiled": partial(peer_step, timm_model, True, True),
    "torchvision": partial(peer_step, torchvision_model, True, False),
}
PEERS = tuple(name for name in CONTESTANTS if name != "ours")


def check_same_size(case: Case, peers: list[str]) -> None:
    """Refuse to compare models of different size.

    Raises:
        ContestantError: they are, or a peer's model cannot be built.
        UserError: ours cannot be built.
    """
    settings = make_trainer(case).settings.model
    models = {"timm": timm_model, "torchvision": torchvision_model}
    for library in dict.fromkeys(peer.partition("-")[0] for peer in peers):
        if library in models:
            try:
                peer = models[library](case)
            except Exception as error:  # theirs raise what they like, and the library may be missing
                raise ContestantError(f"{library}: {type(error).__name__}: {error}") from error
            pair = registry.build(settings, CLASSES), peer
            ours, theirs = (sum(parameter.numel() for parameter in model.parameters()) for model in pair)
            if ours != theirs:
                raise ContestantError(f"{library}: its model has {theirs:,} parameters, and ours {ours:,}")


def measure(case: Case, peers: list[str], rounds: int = 15, seconds: float = math.inf) -> dict[str, Times]:
    """What a step of ours and of the peers takes.

    Raises:
        ContestantError: one failed, or has another model.
        UserError: ours cannot be built.
    """
    check_same_size(case, peers)
    contestants = {name: partial(CONTESTANTS[name], case) for name in ("ours", *peers)}
    return take_turns(contestants, case.device, rounds, seconds, TURN.get(case.device, TURN_ELSEWHERE))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=["timm", "timm-expert"], choices=PEERS)
    parser.add_argument("--depths", type=positive, nargs="+", default=Case.depths)
    parser.add_argument("--dims", type=positive, nargs="+", default=Case.dims)
    parser.add_argument("--patch", type=positive, default=Case.patch)
    parser.add_argument("--size", type=positive, default=Case.size, help="height and width of the images in pixels")
    parser.add_argument("--batch", type=positive, default=Case.batch)
    parser.add_argument("--precision", default=Case.precision, choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no more rounds begin")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    options = parser.parse_args()
    options.device = pick_device(options.device)
    values = {field.name: getattr(options, field.name) for field in fields(Case)}
    case = Case(**values | {"depths": tuple(options.depths), "dims": tuple(options.dims)})
    report(case, measure(case, options.peers, options.rounds, options.seconds), options.json)


def report(case: Case, times: dict[str, Times], as_json: bool) -> None:
    """Print what was measured: a line a contestant."""
    arithmetic = f"{case.precision}, ours by {kernels.describe()}" if case.device == "cpu" else case.precision
    ours, rounds = times["ours"].median, len(times["ours"].turns)
    rows = {
        name: {"ms": 1e3 * each.median, "images_per_second": case.batch / each.median, "ratio": each.median / ours}
        for name, each in times.items()
    }
    idle = max(each.idle for each in times.values())
    if as_json:
        about = {"machine": where(case.device), "arithmetic": arithmetic, "rounds": rounds, "idle": idle}
        print(json.dumps(about | vars(case) | {"contestants": rows}, indent=2))
        return
    print(f"batch {case.batch} at {case.size} px in {arithmetic}; {where(case.device)}; {rounds} rounds")
    for name, row in rows.items():
        rate = f"{row['images_per_second']:9,.0f} images/s"
        print(f"{name:<13} {row['ms']:9,.1f} ms a step {rate}  {row['ratio']:.3f} of ours")
    print(f"while they waited they used at most {100 * idle:.1f} % of a core")


if __name__ == "__main__":
    run_command(main)
