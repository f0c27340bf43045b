"""What class weights and the balanced sampler do for classes of very different size: the digits, thinned.

There are 100 training images of one class, 1 of another, and between them the same ratio from each class to the next.
It is the recipe ``digits``, with smaller batches since there are fewer images, and without a validation split. Which
class has how many images, and which ones, depends on the seed alone. The test split stays whole.

none             as it is
class-weights    ``--loss.class-weights balanced``
sampler          ``--data.sampler balanced``

    OMP_NUM_THREADS=1 python benchmarks/imbalance.py
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from command import positive, run_command
from torch.utils.data import Dataset

import convnext
from convnext.data.datasets.load import load_splits
from convnext.data.sources import ImageSource

MOST, FEWEST = 100, 1  # images of a class
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "class-weights": {"loss.class_weights": "balanced"},
    "sampler": {"data.sampler": "balanced"},
}


class Images(Dataset[Any]):
    """The images of a source, with their labels."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.source.load(index), int(self.source.targets[index])


def thinned(source: ImageSource, seed: int) -> ImageSource:
    """So many images of each class as the text above says."""
    draw = np.random.default_rng(seed)
    classes = draw.permutation(np.unique(source.targets))
    counts = np.geomspace(MOST, FEWEST, len(classes)).round().astype(int)
    of_class = [np.flatnonzero(source.targets == label) for label in classes]
    chosen = [draw.choice(own, count, replace=False) for own, count in zip(of_class, counts, strict=True)]
    return source.subset(np.sort(np.concatenate(chosen)))


def main() -> None:
    """Train every method with every seed, and print the mean and the standard deviation, and each number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=positive, default=60)
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds: a standard deviation needs two or more")
    recipe = convnext.recipe("digits", epochs=options.epochs, batch_size=32, trackers=(), **{"data.val_fraction": 0.0})
    splits = load_splits(recipe.data)
    numbers: dict[str, dict[str, list[float]]] = {name: {"top1": [], "macro_f1": []} for name in METHODS}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            data = {"train": Images(thinned(splits.train, seed)), "test": Images(splits.test)}
            for name, changes in METHODS.items():
                settings = recipe.replace(name=f"{name}-{seed}", output=Path(folder), seed=seed, **changes)
                report = convnext.train(settings, data=data, class_names=splits.classes).report
                numbers[name]["top1"].append(report.top1)
                numbers[name]["macro_f1"].append(report.macro_f1)
    print(
        f"{len(options.seeds)} seeds, {options.epochs} epochs, {(time.process_time() - started) / 60:.1f} CPU minutes\n"
    )
    print("| | test top-1 | macro-F1 |\n| --- | --- | --- |")
    for name, values in numbers.items():
        cells = (f"{statistics.mean(own):.4f} ± {statistics.stdev(own):.4f}" for own in values.values())
        print(f"| {name} | {' | '.join(cells)} |")
    print(json.dumps(numbers))


if __name__ == "__main__":
    run_command(main)
