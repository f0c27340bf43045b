"""ONNX Runtime, on the CPU, without PyTorch."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convnext.errors import CheckpointError, reason
from convnext.inference.backends import METADATA, ExportInfo, Images, check_images, normalized, parse_info


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
    except Exception as error:  # of classes of its own, without one that they share
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None
    info = parse_info(path, session.get_modelmeta().custom_metadata_map.get(METADATA))
    return OnnxRuntimeBackend(session, info)


class OnnxRuntimeBackend:
    """An open session as a `convnext.inference.backends.Backend`."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, export: ExportInfo) -> None:
        self.session, self.export = session, export
        self.info, self.preprocessing = export.model, export.preprocessing

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``."""
        check_images(images, self)
        values = images if self.preprocessing else normalized(images, self.info)
        logits: NDArray[np.float32] = self.session.run(None, {"images": values})[0]
        return logits
