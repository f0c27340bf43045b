"""What our training step costs over a bare PyTorch loop with the same model, optimizer, batch and arithmetic.

Rounds of the two alternate in one process, on the same batches in memory, and each is judged by its median. Ours also
draws its seed, sets the learning rate, sums loss and accuracy, sees that the gradient is finite, and asks for signals.

    python benchmarks/training.py
    python benchmarks/training.py --depths 3 3 9 3 --dims 96 192 384 768 --size 224 --patch 4 --batch 16
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from convnext import recipe
from convnext.data.loading import Batch
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.models import registry
from convnext.training.devices import make_accelerator
from convnext.training.interruption import StopSignals
from convnext.training.optimization import make_optimizers
from convnext.training.progress import Display
from convnext.training.resolution import resolve
from convnext.training.trainer import Trainer

CLASSES = 10


def make_trainer(options: argparse.Namespace) -> Trainer:
    """Our trainer over random images, without its extras: no moving average, no augmentation on the device."""
    pixels = np.random.default_rng(0).integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8)
    source = ArraySource(pixels, np.arange(options.batch) % CLASSES, channels=3)
    splits = Splits(tuple(map(str, range(CLASSES))), source, None, source, (0.5,) * 3, (0.25,) * 3)
    model = {"depths": options.depths, "dims": options.dims, "patch_size": options.patch}
    changes = {"ema_decay": None, "batch_size": options.batch, "precision": options.precision, "device": options.device}
    settings = recipe("cifar10", **changes, model=model, data={"image_size": options.size}, epochs=10_000)
    accelerator = make_accelerator(settings)
    settings, splits = resolve(settings, splits, accelerator)
    trainer = Trainer(settings, splits, accelerator)
    trainer.display = Display(trainer.total_steps, 0, shown=False)
    trainer.folder = Path(tempfile.gettempdir())
    return trainer


def bare_step(trainer: Trainer) -> Callable[[Batch], None]:
    """The same computation in the fewest lines."""
    settings = trainer.settings
    torch.manual_seed(0)
    model = registry.build(settings.model, CLASSES).to(trainer.device).to(memory_format=torch.channels_last).train()
    (optimizer,) = make_optimizers(model, settings.optimizer)
    autocast = trainer.accelerator.autocast

    def step(batch: Batch) -> None:
        images = trainer.normalize(batch.images.to(trainer.device, memory_format=torch.channels_last))
        with autocast():
            logits = model(images).float()
        loss = F.cross_entropy(logits, batch.targets.to(trainer.device), label_smoothing=settings.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm or 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 2])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    trainer = make_trainer(options)
    images = torch.from_numpy(np.stack([trainer.splits.train.raw(index) for index in range(options.batch)]))
    targets = torch.arange(options.batch) % CLASSES
    batch = Batch(images.permute(0, 3, 1, 2), targets, torch.arange(options.batch), [])
    bare = bare_step(trainer)
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    with StopSignals(trainer.folder) as signals:
        steps: dict[str, Callable[[], object]] = {
            "bare": lambda: bare(batch),
            "ours": lambda: trainer._train_step(batch, signals),
        }
        for round_number in range(options.rounds + 2):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                if round_number >= 2:  # the first steps allocate
                    seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    where = f"{trainer.device} in {trainer.settings.precision}"
    print(f"batch {options.batch} at {options.size} px on {where}, {options.rounds} rounds")
    for name, value in median.items():
        print(f"{name}: {1e3 * value:.1f} ms a step, {options.batch / value:,.0f} images/s")
    print(f"ratio: {median['ours'] / median['bare']:.3f} ours/bare time")


if __name__ == "__main__":
    main()
