"""ONNX Runtime, on the CPU, without PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convnext.errors import CheckpointError
from convnext.inference.backends import METADATA, ExportedBackend, ExportInfo, parse_info, runtime_reason


def open_file(
    path: Path,
    device: str = "auto",  # noqa: ARG001
    trust: bool = False,  # noqa: ARG001
    threads: int | None = None,
) -> "OnnxRuntimeBackend":
    """See `convnext.inference.backends.open_file`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    except Exception as error:  # of classes of its own, without one that they share
        raise CheckpointError(f"cannot read {path}: {runtime_reason(error)}") from None
    return OnnxRuntimeBackend(session, path, parse_info(path, text))


class OnnxRuntimeBackend(ExportedBackend):
    """An open session as a `convnext.inference.backends.Backend`."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, path: Path, export: ExportInfo) -> None:
        super().__init__(path, export)
        self.session = session

    def compute(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """See `convnext.inference.backends.ExportedBackend.compute`."""
        logits: NDArray[np.float32] = self.session.run(None, {"images": values})[0]
        return logits
