"""int8 by NNCF, calibrated on images of the run, and what of it a processor computes in int8."""

import contextlib
import io
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convnext.errors import UserError
from convnext.inference.backends import Backend, normalized
from convnext.inference.export.formats import RESIZING, Source
from convnext.inference.signal_stack import in_own_thread

if TYPE_CHECKING:
    import onnx
    import openvino

_BATCH = 8  # images at a time
_PRODUCTS = re.compile(
    r"Convolution|Deconvolution|Conv(?!ert)|MatMul|Gemm|FullyConnected|Attention"
)  # of both runtimes


class Product(NamedTuple):
    """A convolution or product of matrices as it is computed: its name, and whether in int8."""

    name: str
    is_int8: bool


def quantized_openvino(model: "openvino.Model", source: Source) -> "openvino.Model":
    """The model with int8 products, but for ``source.info.float_layers``; UserError where none became int8."""
    names = [operation.get_friendly_name() for operation in model.get_ops()]
    # Additions may be in int8; layer norms are not, which costs no time.
    quantized = _quantize(model, source, lambda batch: batch, _in_float(names, source), ["MVN"])
    kinds = [operation.get_type_name() for operation in quantized.get_ops()]
    require_int8(kinds.count("FakeQuantize"))
    return quantized


def quantized_onnx(model: "onnx.ModelProto", source: Source) -> "onnx.ModelProto":
    """The model with int8 products, but for ``source.info.float_layers``; UserError where none became int8.

    What ONNX Runtime would compute in float all the same, such as a convolution before a layer norm, whose output is
    float, is left as it is: rounding its inputs would cost time and accuracy.
    """
    ignored = _in_float([node.name for node in model.graph.node], source)
    quantized: onnx.ModelProto = _quantize(model, source, lambda batch: {"images": batch}, ignored)
    done = products_onnx(quantized.SerializeToString())
    require_int8(sum(product.is_int8 for product in done))
    if idle := {product.name for product in done if not product.is_int8} - set(ignored):
        quantized = _quantize(model, source, lambda batch: {"images": batch}, [*ignored, *idle])
    return quantized


def products_of(file: Path, backend: Backend) -> list[Product]:
    """What the runtime of an exported file, which it has opened, computes on this processor, operation by operation."""
    return products_openvino(backend.compiled) if hasattr(backend, "compiled") else products_onnx(file)


def products_openvino(compiled: "openvino.CompiledModel") -> list[Product]:
    """What a compiled model computes, operation by operation."""
    products = []
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        name = operation.get_friendly_name()
        if _PRODUCTS.match(info["layerType"].astype(str)) and not name.startswith(RESIZING):
            is_int8 = info["runtimePrecision"].astype(str) in ("i8", "u8")
            products.append(Product(name, is_int8))
    return products


def products_onnx(model: Path | bytes) -> list[Product]:
    """What ONNX Runtime makes of a file, or of its bytes, on this processor, operation by operation."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    return [
        Product(node.name, node.op_type.startswith("Q") or "Integer" in node.op_type)
        for node in nodes
        if _PRODUCTS.search(node.op_type)
    ]


def require_int8(operations: int) -> None:
    """Refuse, with a UserError, int8 with no such operations."""
    if not operations:
        raise UserError("int8: every operation stayed in float, so nothing was written: choose --precision fp32")


def _in_float(names: Sequence[str], source: Source) -> list[str]:
    """Those of the operations that belong to ``source.info.float_layers``."""
    return [name for name in names if name.partition(":")[0] in source.info.float_layers]


def _quantize(
    model: Any, source: Source, item: Callable[[Any], Any], ignored: Sequence[str], kinds: Sequence[str] = ()
) -> Any:
    images = source.calibration
    batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    with _quiet():
        import nncf

        dataset = nncf.Dataset(batches, lambda batch: item(normalized(batch, source.info.model)))
        # Activations get one scale a tensor, weights one a channel.
        scope = nncf.IgnoredScope(names=list(ignored), types=list(kinds), validate=False)
        return in_own_thread(
            lambda: nncf.quantize(
                model,
                dataset,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(batches),
                fast_bias_correction=True,
                ignored_scope=scope,
            )
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
