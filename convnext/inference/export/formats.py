"""What every export format starts from: a model, its description, and its graph."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from convnext.config import RunSettings
from convnext.inference.backends import ExportInfo, Images

RESIZING = "resizing"
"""What the names of products begin with that resize images, which are none of the model's."""


@dataclass(frozen=True)
class Source:
    """What is to be written.

    Attributes:
        model: from normalised images ``(N, C, H, W)`` to logits ``(N, K)``, on the CPU.
        info: what the file says of itself, its precision and whether its pre-processing is inside.
        calibration: images ``(H, W, C)``, as evaluation makes them, for int8 to learn its ranges from.
        settings: of the run that trained it; None for released weights.
        report: file with the run's numbers on its test split; None where there is none.
    """

    model: nn.Module
    info: ExportInfo
    calibration: list[Images]
    settings: RunSettings | None = None
    report: Path | None = None


@torch.no_grad()
def capture(source: Source) -> torch.export.ExportedProgram:
    """The model's graph, for any batch size, from and to float32 in the precision asked for."""
    info = source.info.model
    model = source.model.eval()
    if source.info.precision in ("fp16", "bf16"):
        model = InPrecision(model, torch.float16 if source.info.precision == "fp16" else torch.bfloat16)
    images = torch.zeros(2, info.channels, info.image_size, info.image_size)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))


class InPrecision(nn.Module):
    """A copy of a model that computes in ``dtype``, but for its images and logits."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` to ``(N, K)``, both float32."""
        logits: torch.Tensor = self.model(images.to(self.dtype))
        return logits.float()
