"""How fast training images arrive: our loader against timm's, over the same JPEG files in one run.

Both give normalized float batches of random resized crops (224 px, bicubic, scale 0.08 to 1) with flips, from the same
files with the same number of workers. Rounds of the loaders alternate, and each is judged by its median.

    python benchmarks/loading.py --images ../shared/data/imagenet-samples-125.tar --workers 2
"""

import argparse
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from command import positive, run_command

from convnext.config import AugmentSettings
from convnext.data.batch_transforms import Normalize
from convnext.data.cache.source import open_cache
from convnext.data.files import class_folders, scan_folder
from convnext.data.loading.loader import AugmentedImages, TrainSampler, batches
from convnext.data.sources import ImageSource
from convnext.data.transforms import TrainTransform
from convnext.devices import keep_freed_memory
from convnext.errors import DataError, reason
from convnext.storage.measurements import cpu_name

SIZE, BATCH = 224, 64
SUFFIXES = (".jpeg", ".jpg")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder_of(images: Path, repeat: int, folder: Path) -> Path:
    """A folder ``train/<class>/`` with ``repeat`` links to every image of a folder or tar file.

    Raises:
        DataError: there is no image, or the file is no tar file.
    """
    given = images
    if images.is_file():
        try:
            with tarfile.open(images) as archive:
                archive.extractall(folder / "files", filter="data")
        except tarfile.TarError as error:
            line = reason(error).rstrip(":")
            raise DataError(f"{images}: it is no folder, and as a tar file it cannot be read: {line}") from error
        images = folder / "files"
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{given}: there is no image in it: give a folder or tar file of JPEGs named CLASS_*.JPEG")
    for path in paths:
        target = folder / "train" / path.stem.split("_")[0]
        target.mkdir(parents=True, exist_ok=True)
        for number in range(repeat):
            (target / f"{path.stem}-{number}.JPEG").symlink_to(path.resolve())
    return folder / "train"


def ours(source: ImageSource, workers: int) -> int:
    """One epoch of our loader; returns the images that came."""
    transform = TrainTransform(AugmentSettings(), SIZE, MEAN)
    sampler = TrainSampler(len(source), BATCH, epochs=1, seed=0)
    normalize, count = Normalize(MEAN, STD), 0
    with batches(AugmentedImages(source, [transform], seed=0), sampler, workers) as stream:
        for batch in stream:
            count += len(normalize(batch.images))
    return count


def timms(folder: Path, workers: int) -> int:
    """One epoch of timm's loader; returns the images that came."""
    from timm.data.dataset import ImageDataset
    from timm.data.loader import create_loader

    loader = create_loader(
        ImageDataset(str(folder)),  # type: ignore[no-untyped-call]
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        scale=(0.08, 1.0),
        hflip=0.5,
        color_jitter=0,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=False,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    return sum(len(images) for images, _ in loader)


def measure(images: Path, workers: int, repeat: int = 16, rounds: int = 5) -> dict[str, list[float]]:
    """Images a second in each round of each loader; for a process of its own, whose threads and allocator it sets."""
    keep_freed_memory()  # as training does; it helps both, whose float batches are large
    torch.set_num_threads(1)  # a second thread would wait for work by spinning, on a core that a worker needs
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder_of(images, repeat, Path(temporary))
        os.environ["CONVNEXT_CACHE"] = temporary
        source = scan_folder(folder, class_folders(folder))
        cached = open_cache(source, image_size=256)
        loaders: dict[str, Callable[[], int]] = {
            "timm": lambda: timms(folder, workers),
            "ours": lambda: ours(source, workers),
            "ours_cached": lambda: ours(cached, workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(rounds):
            for name, run in loaders.items():
                started = time.perf_counter()
                count = run()
                rates[name].append(count / (time.perf_counter() - started))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder or tar file of JPEGs named CLASS_*.JPEG")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=positive, default=16, help="times that each image is read in a round")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--json", action="store_true", help="images a second of each round, on standard output")
    options = parser.parse_args()
    rates = measure(options.images, options.workers, options.repeat, options.rounds)
    if options.json:
        print(json.dumps(rates))
        return
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{cpu_name()}, {options.workers} workers, {options.rounds} rounds, torch {torch.__version__}")
    for name, values in rates.items():
        print(f"{name:<13} {median[name]:8,.0f} images/s (from {min(values):,.0f} to {max(values):,.0f})")
    print(f"ratio: {median['ours'] / median['timm']:.2f} ours/timm")
    print(f"ratio: {median['ours_cached'] / median['timm']:.2f} ours cached/timm")


if __name__ == "__main__":
    run_command(main)
