"""OpenVINO, on the CPU, without PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from convnext.errors import CheckpointError
from convnext.inference.backends import METADATA, ExportedBackend, ExportInfo, parse_info, runtime_reason
from convnext.inference.signal_stack import in_own_thread

_START = 1024  # bytes, in which the root element of a model begins


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
    with path.open("rb") as file:
        if b"<net" not in file.read(_START):  # of which other readers of OpenVINO would complain on standard error
            raise CheckpointError(f"cannot read {path}: it is no model of OpenVINO")
    try:
        model = openvino.Core().read_model(path)
        text = model.get_rt_info(METADATA).astype(str) if model.has_rt_info(METADATA) else None
        return OpenVinoBackend(model, path, parse_info(path, text), threads)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {runtime_reason(error)}") from None


class OpenVinoBackend(ExportedBackend):
    """A model as a `convnext.inference.backends.Backend`."""

    name = "openvino"

    def __init__(self, model: openvino.Model, path: Path, export: ExportInfo, threads: int | None = None) -> None:
        super().__init__(path, export)
        # By itself OpenVINO takes bf16 where the processor has it, and then no file means what it says.
        hint = "bf16" if export.precision == "bf16" else "f32"
        options = {"INFERENCE_PRECISION_HINT": hint} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self.compiled = in_own_thread(lambda: openvino.compile_model(model, "CPU", options))

    def compute(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """See `convnext.inference.backends.ExportedBackend.compute`."""
        logits: NDArray[np.float32] = np.array(self.compiled(values)[0])  # the next call writes into its memory
        return logits
