"""OpenVINO's intermediate representation: ``.xml`` with its weights in a ``.bin`` beside it."""

import io
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops

from convnext.errors import SettingsError
from convnext.inference.backends import METADATA
from convnext.inference.export import onnx_file
from convnext.inference.export.formats import RESIZING, Source, explained
from convnext.weights.model_info import ModelInfo


def write(source: Source, path: Path) -> None:
    """Write the model as ``path`` and a ``.bin`` beside it."""
    if source.info.preprocessing and source.info.precision == "bf16":
        raise SettingsError("openvino would resize in bf16, too: leave --include-preprocessing out, or choose fp16")
    plain = Source(source.model, source.info.model_copy(update={"precision": "fp32"}), source.calibration)
    graph = onnx_file.graph(plain)
    with explained("openvino"):
        model = openvino.convert_model(io.BytesIO(graph.SerializeToString()))
    names = {output: node.name for node in graph.graph.node for output in node.output}
    for operation in model.get_ops():  # the last is called as its output
        operation.set_friendly_name(names.get(operation.get_friendly_name(), operation.get_friendly_name()))
    if source.info.precision == "int8":
        from convnext.inference.export.quantization import quantized_openvino

        model = quantized_openvino(model, source)
    if source.info.preprocessing:
        _prepend_preprocessing(model, source.info.model)
    model.set_rt_info(source.info.model_dump_json(), METADATA)
    unfinished = path.with_name(f".{path.stem}.tmp.xml")
    try:
        openvino.save_model(model, unfinished, compress_to_fp16=source.info.precision in ("fp16", "bf16"))
        unfinished.with_suffix(".bin").replace(path.with_suffix(".bin"))
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        for rest in (unfinished, unfinished.with_suffix(".bin")):
            rest.unlink(missing_ok=True)
        raise SettingsError(f"cannot write {path}: {error}") from None


def _prepend_preprocessing(model: openvino.Model, info: ModelInfo) -> None:
    """As `convnext.inference.export.onnx_preprocessing`, whose antialiasing OpenVINO leaves out of ONNX's Resize."""
    images = ops.parameter([-1, -1, -1, info.channels], np.uint8, name="images")
    images.output(0).tensor.names = {"images"}
    shape = ops.shape_of(images, "i64")
    height, width = (ops.slice(shape, [axis], [axis + 1], [1]) for axis in (1, 2))
    shorter = round(info.image_size / info.center_crop)
    edge, size = (ops.constant(np.array([length], np.int64)) for length in (shorter, info.image_size))
    smaller = ops.minimum(height, width)
    new_height, new_width = (ops.divide(ops.multiply(edge, length), smaller) for length in (height, width))
    pixels = ops.convert(ops.transpose(images, [0, 3, 1, 2]), "f32")
    for along_rows in (True, False):
        if along_rows:
            resized = ops.matmul(pixels, _resizing(width, new_width), transpose_a=False, transpose_b=True)
        else:
            resized = ops.matmul(_resizing(height, new_height), pixels, transpose_a=False, transpose_b=False)
        resized.set_friendly_name(f"{RESIZING} of {'rows' if along_rows else 'columns'}")
        pixels = ops.clamp(ops.round(resized, "half_to_even"), 0.0, 255.0)
    two = ops.constant(np.array([2], np.float64))
    rests = [ops.convert(ops.subtract(length, size), "f64") for length in (new_height, new_width)]
    starts = [ops.convert(ops.round(ops.divide(rest, two), "half_to_even"), "i64") for rest in rests]
    start = ops.concat(starts, 0)
    pixels = ops.slice(pixels, start, ops.add(start, size), [1, 1], [2, 3])
    mean, std = (
        ops.constant((np.asarray(values, np.float32) * 255).reshape(1, -1, 1, 1)) for values in (info.mean, info.std)
    )
    normalized = ops.divide(ops.subtract(pixels, mean), std)
    before = model.get_parameters()[0]
    for target in before.output(0).get_target_inputs():
        target.replace_source_output(normalized.output(0))
    model.remove_parameter(before)
    model.add_parameters([images])
    model.validate_nodes_and_infer_types()


def _resizing(length: openvino.Node, new_length: openvino.Node) -> openvino.Node:
    """The matrix ``(new_length, length)`` of Pillow's bicubic, antialiased resizing along an axis.

    OpenVINO's own ``bicubic_pillow`` is compiled anew for every size of image, which takes it a second.

    Args:
        length: of shape ``(1,)``, int64; ``new_length`` is the same.
        new_length: after resizing.
    """
    old, new = (ops.convert(ops.squeeze(each, ops.constant(0)), "f32") for each in (length, new_length))
    zero, half, one, two, four = (ops.constant(np.float32(value)) for value in (0, 0.5, 1, 2, 4))
    a, b = (ops.constant(np.float32(value)) for value in (1.5, 2.5))
    scale = old / new
    row, column = (ops.range(zero, end, one, "f32") + half for end in (new, old))
    center = ops.unsqueeze(row * scale, ops.constant(1))
    x = ops.abs(column - center) / ops.maximum(scale, one)  # the kernel is wider where the image shrinks
    # Keys' kernel with a = -0.5, which is 0 from 2 on.
    near, far = (a * x - b) * x * x + one, ((b - half * x) * x - four) * x + two
    weights = ops.select(ops.less(x, one), near, ops.select(ops.less(x, two), far, zero))
    return weights / ops.reduce_sum(weights, ops.constant(1), keep_dims=True)
