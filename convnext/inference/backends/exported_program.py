"""PyTorch, from a ``.pt2`` of `torch.export`."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from convnext.devices import pick_device
from convnext.errors import CheckpointError, SettingsError, reason
from convnext.inference.backends import METADATA, ExportInfo, Images, check_images, normalized, parse_info


def open_file(
    path: Path,
    device: str = "auto",
    trust: bool = False,
    threads: int | None = None,  # noqa: ARG001
) -> "ExportedProgramBackend":
    """See `convnext.inference.backends.open_file`."""
    if not trust:
        raise SettingsError(
            f"{path}: PyTorch can run code that stands in a .pt2: give --trust for one that you made, or take .onnx"
        )
    extra = {METADATA: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # of a dozen classes, from zip files to JSON
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None
    return ExportedProgramBackend(program, parse_info(path, extra[METADATA]), device)


class ExportedProgramBackend:
    """A program as a `convnext.inference.backends.Backend`."""

    name = "torch.export"

    def __init__(self, program: torch.export.ExportedProgram, export: ExportInfo, device: str = "auto") -> None:
        self.export = export
        self.info, self.preprocessing = export.model, export.preprocessing
        self.device = torch.device(pick_device(device))
        self.module = program.module().to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Images) -> NDArray[np.float32]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``."""
        check_images(images, self)
        values = torch.from_numpy(images if self.preprocessing else normalized(images, self.info))
        logits: NDArray[np.float32] = self.module(values.to(self.device)).float().cpu().numpy()
        return logits
