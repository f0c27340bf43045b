"""A module and data sets of one's own, trained as they are: python examples/own_data.py [FOLDER].

`data` takes map-style torch data sets of (Pillow image or uint8 tensor, label), such as torchvision's; `model` any
module from normalized images (N, C, H, W) to logits (N, K).
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import convnext


class Digits(Dataset[tuple[Tensor, int]]):
    """Handwritten digits, 8x8 px: the same image for an index each time, so that an interrupted run goes on exactly."""

    classes = tuple("0123456789")

    def __init__(self, first: int, last: int) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[first:last] * 255 / 16).to(torch.uint8)[:, None]
        self.targets: list[int] = digits.target[first:last].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def make_model() -> nn.Module:
    """A small network; any module will do."""
    convolutions = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main(output: Path) -> float:
    """Train for eight epochs into a run's folder in ``output``; returns the accuracy on the test split."""
    settings = convnext.recipe("digits", epochs=8, output=output, name="own", **{"optimizer.lr": 0.02})
    data = {"train": Digits(0, 1400), "test": Digits(1400, 1797)}
    run = convnext.train(settings, model=make_model(), data=data, resume=True)
    predictor = convnext.Predictor.load(run.path, model=make_model())
    print(f"{run.report.count} images: top-1 {run.report.top1:.3f}; {predictor.info.classes}")
    return run.report.top1


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp()))
