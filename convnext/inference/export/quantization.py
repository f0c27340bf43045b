"""int8 by NNCF, calibrated on images of the run."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from convnext.errors import UserError
from convnext.inference.backends import normalized
from convnext.inference.export.formats import Source

if TYPE_CHECKING:
    import onnx
    import openvino

_BATCH = 8  # images at a time


def quantized_openvino(model: "openvino.Model", source: Source) -> "openvino.Model":
    """The model with int8 products; UserError where none became int8."""
    quantized = _quantize(model, source, lambda batch: batch)
    kinds = [operation.get_type_name() for operation in quantized.get_ops()]
    _require(kinds.count("FakeQuantize"))
    return quantized


def quantized_onnx(model: "onnx.ModelProto", source: Source) -> "onnx.ModelProto":
    """The model with int8 products; UserError where none became int8."""
    quantized: onnx.ModelProto = _quantize(model, source, lambda batch: {"images": batch})
    _require(sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node))
    return quantized


def _quantize(model: Any, source: Source, item: Callable[[Any], Any]) -> Any:
    images = source.calibration
    batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    with _quiet():
        import nncf

        dataset = nncf.Dataset(batches, lambda batch: item(normalized(batch, source.info.model)))
        # Layer norms and additions stay in float; activations get one scale a tensor, weights one a channel.
        return nncf.quantize(
            model,
            dataset,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            fast_bias_correction=True,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what NNCF and its imports say of themselves, on standard output, too."""
    levels = {name: logging.getLogger(name).level for name in ("nncf", "torch.utils.cpp_extension")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _require(operations: int) -> None:
    if not operations:
        raise UserError("int8: NNCF left every operation in float, so nothing was written: choose --precision fp32")
