"""OpenVINO, on the CPU, without PyTorch."""

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from convnext.errors import CheckpointError, reason
from convnext.inference.backends import METADATA, ExportInfo, Images, check_images, normalized, parse_info


def open_file(
    path: Path,
    device: str = "auto",  # noqa: ARG001
    trust: bool = False,  # noqa: ARG001
    threads: int | None = None,
) -> "OpenVinoBackend":
    """See `convnext.inference.backends.open_file`."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise CheckpointError(f"{path} has its weights in {weights.name}, which is not beside it: copy both")
    try:
        model = openvino.Core().read_model(path)
    except Exception as error:  # OpenVINO raises RuntimeError of several lines
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None
    text = model.get_rt_info(METADATA).astype(str) if model.has_rt_info(METADATA) else None
    return OpenVinoBackend(model, parse_info(path, text), threads)


class OpenVinoBackend:
    """A model as a `convnext.inference.backends.Backend`."""

    name = "openvino"

    def __init__(self, model: openvino.Model, export: ExportInfo, threads: int | None = None) -> None:
        self.export = export
        self.info, self.preprocessing = export.model, export.preprocessing
        # By itself OpenVINO takes bf16 where the processor has it, and then no file means what it says.
        hint = "bf16" if export.precision == "bf16" else "f32"
        options = {"INFERENCE_PRECISION_HINT": hint} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self.compiled = openvino.compile_model(model, "CPU", options)

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``."""
        check_images(images, self)
        values = images if self.preprocessing else normalized(images, self.info)
        logits: NDArray[np.float32] = np.array(self.compiled(values)[0])  # the next call writes into its memory
        return logits
