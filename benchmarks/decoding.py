"""What evaluation gains by decoding JPEG files at a reduced size, and how far its pixels are from a whole decode's.

Each rule gives the middle of every image as evaluation does, with one thread, from files in memory. ``whole`` decodes
all of an image, ``margin 2`` at a reduced size where twice the result is left to resize, as evaluation does, and
``margin 1`` where the result itself is left, as training does for random crops. Rounds of the rules alternate, and each
is judged by its median. Differences are in grey levels from 0 to 255, over all pixels of all images.

    python benchmarks/decoding.py --images DIR
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from command import positive, run_command
from torch import Tensor

from convnext.data.images import Picture
from convnext.data.transforms import EvalTransform

MARGINS = {"whole": 1_000_000, "margin 2": 2, "margin 1": 1}


def transformed(files: dict[str, bytes], transform: EvalTransform) -> Tensor:
    """All images decoded, ``(N, 3, image_size, image_size)`` uint8."""
    return torch.stack([transform(Picture(raw, channels=3, name=name)) for name, raw in files.items()])


def measure(files: dict[str, bytes], image_size: int, center_crop: float, rounds: int) -> None:
    """Print the differences and speeds at one size."""
    rates: dict[str, list[float]] = {name: [] for name in MARGINS}
    images: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, margin in MARGINS.items():
            transform = EvalTransform(image_size, center_crop, margin)
            started = time.perf_counter()
            images[name] = transformed(files, transform)
            rates[name].append(len(files) / (time.perf_counter() - started))
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{image_size} px, center_crop {center_crop:g}")
    for name, values in rates.items():
        difference = (images[name].int() - images["whole"].int()).abs()
        changed = int(difference.flatten(1).any(1).sum())
        print(
            f"  {name:<9} {median[name]:6,.0f} images/s (from {min(values):,.0f} to {max(values):,.0f}); {changed} "
            f"images differ, by {difference.float().mean():.3f} in the mean over all and {difference.max()} at most"
        )
    for name in ("whole", "margin 1"):
        print(f"  ratio: {median['margin 2'] / median[name]:.2f} margin 2/{name}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--sizes", type=positive, nargs="+", default=[64, 160, 224], help="image sizes in pixels")
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    paths = (path for path in sorted(options.images.rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg"))
    files = {str(path): path.read_bytes() for path in paths}
    if not files:
        parser.error(f"--images: {options.images} has no file named *.jpg or *.jpeg")
    torch.set_num_threads(1)
    print(f"{len(files)} images, {options.rounds} rounds, 1 thread, torch {torch.__version__}")
    for image_size in options.sizes:
        for center_crop in (0.875, 1.0):
            measure(files, image_size, center_crop, options.rounds)


if __name__ == "__main__":
    run_command(main)
