"""A model of your own under a recipe: registered by one decorator, then trained, kept and measured as the others are.

``python examples/own_model.py`` trains it for an epoch on the digits. What it takes of the settings (here
``in_channels``, ``depths`` and ``dims``) is what its parameters are named after: ``--model.dims`` on the command line,
``**{"model.dims": ...}`` here. To use it in ``convnext train``, put the class into a file of ``convnext/models/``.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

import convnext
from convnext.models.registry import register_model


@register_model("plainnet")
class PlainNet(nn.Module):
    """Convolutions, norms and ReLUs; each stage halves the image. ``(N, C, H, W)`` to logits ``(N, num_classes)``."""

    def __init__(
        self, num_classes: int, in_channels: int = 3, depths: Sequence[int] = (1, 1), dims: Sequence[int] = (32, 64)
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for depth, dim in zip(depths, dims, strict=True):
            for number in range(depth):
                stride = 2 if number == 0 else 1
                self.features.append(nn.Conv2d(in_channels, dim, 3, stride, padding=1, bias=False))
                self.features.append(nn.BatchNorm2d(dim)).append(nn.ReLU())
                in_channels = dim
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits; see the class."""
        logits: Tensor = self.head(self.features(x).mean((-2, -1)))
        return logits


def main(output: Path = Path("runs"), epochs: int = 1) -> float:
    """Train it on the digits; returns the accuracy on the test images."""
    changes = {"model.name": "plainnet", "model.dims": (16, 32), "name": "plainnet"}
    run = convnext.train(convnext.recipe("digits", output=output, epochs=epochs, **changes))
    print(f"{run.path}: top-1 {100 * run.report.top1:.1f} % on the test images")
    return run.report.top1


if __name__ == "__main__":
    main()
