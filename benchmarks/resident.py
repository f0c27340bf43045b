"""How fast small training images arrive: augmented by the device that holds them, against by workers, in one run.

Random images in memory, as many and as large as CIFAR-10's, or those of a folder at that size: padded crops, flips and
erasing, to normalized float batches on the device. Rounds alternate, each an epoch, and each contestant is judged by
its median; reading the images onto the device is measured by itself.

    python benchmarks/resident.py --workers 1
    python benchmarks/resident.py --policy trivialaugment
    python benchmarks/resident.py --device cuda --workers 8 --images DIR
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from command import positive, run_command

from convnext import recipe
from convnext.config import DataSettings, RunSettings
from convnext.data.batch_transforms import Normalize
from convnext.data.datasets.load import load_splits
from convnext.data.loading.loader import AugmentedImages, training_images, training_sampler
from convnext.data.loading.resident import ResidentImages, training_batches
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.devices import keep_freed_memory, pick_device
from convnext.storage.measurements import cpu_name

COUNT, SIZE = 50_000, 32


def random_splits() -> Splits:
    """Images of noise, of 10 classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    source = ArraySource(pixels, np.arange(COUNT) % 10, channels=3)
    return Splits(tuple("0123456789"), source, None, source, mean=(0.5,) * 3, std=(0.25,) * 3)


def epoch(
    settings: RunSettings, splits: Splits, images: AugmentedImages | ResidentImages, workers: int, device: torch.device
) -> float:
    """Images a second."""
    normalize, count = Normalize(splits.mean, splits.std).to(device), 0
    started = time.perf_counter()
    with training_batches(images, training_sampler(settings, splits.train, 0, 1), workers, device) as stream:
        for batch in stream:
            pixels = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
            count += len(normalize(pixels))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--images", type=Path, help="folder of class folders, in place of random images in memory")
    parser.add_argument("--workers", type=int, default=0, help="processes of the contestant that has workers")
    parser.add_argument("--policy", default="none", choices=("none", "randaugment", "autoaugment", "trivialaugment"))
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)  # a second thread would wait for work by spinning, on a core that a worker needs
    device = torch.device(pick_device(options.device))
    folder = DataSettings(root=options.images, image_size=SIZE, val_fraction=0.0)
    splits = load_splits(folder) if options.images else random_splits()
    augment = {"random_erasing": 0.25, "policy": options.policy}
    settings = recipe("cifar10", epochs=1, batch_size=options.batch_size, augment=augment, **{"data.start_size": None})
    started = time.perf_counter()
    resident = ResidentImages(settings, splits, device, progress=False)
    reading = time.perf_counter() - started
    contestants: dict[str, Callable[[], float]] = {
        "device": lambda: epoch(settings, splits, resident, 0, device),
        "workers": lambda: epoch(
            settings, splits, training_images(settings, splits.train, splits.mean), options.workers, device
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            rates[name].append(run())
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    print(f"{hardware}, {options.workers} workers, batch {options.batch_size}, torch {torch.__version__}")
    print(f"padded crops, flips, policy {options.policy}, erasing")
    print(f"reading {len(splits.train):,} images onto the device: {reading:.1f} s")
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:<8} {median[name]:9,.0f} images/s (from {min(values):,.0f} to {max(values):,.0f})")
    print(f"ratio: {median['device'] / median['workers']:.2f} device/workers")


if __name__ == "__main__":
    run_command(main)
