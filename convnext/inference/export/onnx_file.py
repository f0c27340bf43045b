"""ONNX, for ONNX Runtime and everything else that reads it."""

import ast
import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnxscript import optimizer

from convnext.errors import SettingsError
from convnext.inference.backends import METADATA, ExportInfo
from convnext.inference.export.formats import Source, capture, check_size, explained
from convnext.inference.export.layers import layer_names
from convnext.inference.export.onnx_preprocessing import preprocessing
from convnext.storage.files import writing

_ANY = 2**31  # bytes: a file of ONNX has no more


def write(source: Source, path: Path) -> None:
    """Write the model as ``path``; SettingsError for a precision that the format cannot have."""
    if source.info.precision == "bf16":
        raise SettingsError("ONNX Runtime has no bf16 on the CPU: choose --precision fp32, fp16 or int8, or openvino")
    model = graph(source)
    if source.info.precision == "int8":
        from convnext.inference.export.quantization import quantized_onnx

        model = quantized_onnx(model, source)
    if source.info.preprocessing:
        model = with_preprocessing(model, source.info)
    describe(model, source.info)
    onnx.checker.check_model(model)
    with writing(path) as unfinished:
        unfinished.write_bytes(model.SerializeToString())


def graph(source: Source) -> onnx.ModelProto:
    """The model from normalised float32 ``images`` to ``logits``, for any batch size; UserError where it has no such
    graph, or is too large for one."""
    check_size(source.model, source.info.precision)
    captured = capture(source)
    with explained("torch.onnx"):
        program = torch.onnx.export(
            captured, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        )
        assert program is not None
        # The exporter folds small constants alone; NNCF fails where an operation stands between a weight and its layer.
        optimizer.optimize(program.model, input_size_limit=_ANY, output_size_limit=_ANY)
        model: onnx.ModelProto = copy.deepcopy(program.model_proto)
    _name_layers(model, layer_names(captured))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def _name_layers(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Call the operations that multiply or convolve as the layers that they belong to, a second one ``NAME:2``."""
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        layer = names.get(ast.literal_eval(scopes[0])[-1]) if scopes else None
        if layer is not None and node.op_type in ("Conv", "Gemm", "MatMul"):
            counts[layer] += 1
            node.name = layer if counts[layer] == 1 else f"{layer}:{counts[layer]}"


def with_preprocessing(model: onnx.ModelProto, info: ExportInfo) -> onnx.ModelProto:
    """The model that takes uint8 ``images`` ``(N, H, W, C)`` of any size."""
    before = preprocessing(info.model, next(opset.version for opset in model.opset_import if opset.domain == ""))
    before.ir_version = model.ir_version
    after = onnx.compose.add_prefix(model, "model/", rename_inputs=True, rename_outputs=False)
    return onnx.compose.merge_models(before, after, io_map=[("normalized", "model/images")])


def describe(model: onnx.ModelProto, info: ExportInfo) -> None:
    """Write what the file says of itself into it."""
    model.producer_name, model.producer_version = "convnext", info.version
    model.doc_string = f"{info.model.model.name}, {len(info.model.classes)} classes"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: info.model_dump_json()})
