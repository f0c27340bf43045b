"""PyTorch, from a ``.pt2`` of `torch.export`."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnext.devices import pick_device
from convnext.errors import CheckpointError, SettingsError, reason
from convnext.inference.backends import METADATA, ExportedBackend, ExportInfo, parse_info


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
    extra, log = {METADATA: ""}, logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)  # of what cannot be read it prints a traceback
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # of a dozen classes, from zip files to JSON
        raise CheckpointError(
            f"cannot read {path}: it is empty, damaged, or of another version of PyTorch: {reason(error)}"
        ) from None
    finally:
        log.setLevel(level)
    return ExportedProgramBackend(program, path, parse_info(path, extra[METADATA]), device)


class ExportedProgramBackend(ExportedBackend):
    """A program as a `convnext.inference.backends.Backend`."""

    name = "torch.export"

    def __init__(
        self, program: torch.export.ExportedProgram, path: Path, export: ExportInfo, device: str = "auto"
    ) -> None:
        super().__init__(path, export)
        self.device = torch.device(pick_device(device))
        self.module = program.module().to(self.device)

    @torch.inference_mode()
    def compute(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """See `convnext.inference.backends.ExportedBackend.compute`."""
        logits: NDArray[np.float32] = self.module(torch.from_numpy(values).to(self.device)).float().cpu().numpy()
        return logits
