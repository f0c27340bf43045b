"""What every export format starts from: a model, its description, and its graph."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from convnext.config import RunSettings
from convnext.errors import UserError, reason
from convnext.inference.backends import ExportInfo, Images

RESIZING = "resizing"
"""What the names of products begin with that resize images, which are none of the model's."""
_LARGEST = 2**31 - 2**24  # bytes of weights: protobuf's 2 GB, less room for the graph itself


@dataclass(frozen=True)
class Source:
    """What is to be written.

    Attributes:
        model: from normalised images ``(N, C, H, W)`` to logits ``(N, K)``, on the CPU.
        info: what the file says of itself, its precision and whether its pre-processing is inside.
        calibration: images ``(H, W, C)``, as evaluation makes them, for int8 to learn its ranges from.
        settings: of the run that trained it; None for released weights.
        report: file with the numbers of these weights on the split that the run is tested on; None where there is none.
        tested_on: what that split is called: ``"test"``, or ``"val"`` where the data has no other.
    """

    model: nn.Module
    info: ExportInfo
    calibration: list[Images]
    settings: RunSettings | None = None
    report: Path | None = None
    tested_on: str = "test"


def check_size(model: nn.Module, precision: str) -> None:
    """Refuse, with a UserError, a model whose weights are more than a graph of ONNX holds, from which OpenVINO's is
    made, too; its weights are of fp16, or else of fp32."""
    size = sum(tensor.numel() for tensor in model.state_dict().values()) * (2 if precision == "fp16" else 4)
    if size > _LARGEST:
        half = "--format onnx --precision fp16, " if precision != "fp16" and size / 2 <= _LARGEST else ""
        raise UserError(
            f"the model has {size / 1e9:.2f} GB of weights, and a graph of ONNX, from which OpenVINO's is made, holds "
            f"{_LARGEST / 1e9:.2f} GB: choose {half}--format torch or hub, or backend eager"
        )


@contextmanager
def explained(step: str) -> Iterator[None]:
    """Makes a UserError of whatever PyTorch and the runtimes raise for a model that has no such graph."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of dozens of classes
        raise UserError(
            f"{step} cannot take this model: {reason(error)}; choose --format hub, or use the run itself (backend "
            f"eager)"
        ) from error


@torch.no_grad()
def capture(source: Source) -> torch.export.ExportedProgram:
    """The model's graph, for any batch size, from and to float32 in the precision asked for; UserError where it has
    none."""
    info = source.info.model
    model = source.model.eval()
    if source.info.precision in ("fp16", "bf16"):
        model = InPrecision(model, torch.float16 if source.info.precision == "fp16" else torch.bfloat16)
    images = torch.zeros(2, info.channels, info.image_size, info.image_size)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with explained("torch.export"):
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
