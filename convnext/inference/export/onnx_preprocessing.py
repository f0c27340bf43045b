"""`EvalTransform` and `Normalize` as an ONNX graph, so that a file takes uint8 images of any size."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convnext.weights.model_info import ModelInfo

PREFIX = "preprocessing/"


class _Graph:
    """Nodes and constants of a graph that is being built; a value is its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, dtype: type[np.generic]) -> str:
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{PREFIX}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name


def preprocessing(info: ModelInfo, opset: int) -> onnx.ModelProto:
    """From uint8 ``images`` ``(N, H, W, C)`` of any size to float32 ``normalized`` ``(N, C, image_size, image_size)``.

    The image is resized along its width, then along its height, each rounded to whole grey levels, as torch does with
    uint8: within one grey level, and most pixels equal.
    """
    graph = _Graph()
    size, channels = info.image_size, info.channels
    shorter = round(size / info.center_crop)
    height, new_height, new_width = _sizes(graph, shorter)
    count, depth = (_dimension(graph, axis) for axis in (0, 3))
    pixels = graph.add("Cast", graph.add("Transpose", "images", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    for shape in ((height, new_width), (new_height, new_width)):
        pixels = _resized(graph, pixels, graph.add("Concat", count, depth, *shape, axis=0))
    edge = graph.constant([size], np.int64)
    starts = [_middle(graph, length, edge) for length in (new_height, new_width)]
    ends = [graph.add("Add", start, edge) for start in starts]
    start, end = (graph.add("Concat", *edges, axis=0) for edges in (starts, ends))
    pixels = graph.add("Slice", pixels, start, end, graph.constant([2, 3], np.int64))
    mean, std = (
        graph.constant(np.reshape(np.asarray(values, np.float32) * 255, (1, -1, 1, 1)), np.float32)
        for values in (info.mean, info.std)
    )
    result = graph.add("Div", graph.add("Sub", pixels, mean), std)
    graph.nodes.append(helper.make_node("Identity", [result], ["normalized"], f"{PREFIX}normalized"))
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", channels])
    normalized = helper.make_tensor_value_info("normalized", TensorProto.FLOAT, ["batch", channels, size, size])
    made = helper.make_graph(graph.nodes, "preprocessing", [images], [normalized], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _dimension(graph: _Graph, axis: int) -> str:
    shape = graph.add("Shape", "images")
    return graph.add("Gather", shape, graph.constant([axis], np.int64))


def _sizes(graph: _Graph, shorter: int) -> tuple[str, str, str]:
    """Height of the images, and height and width after the shorter of the two has become ``shorter``."""
    height, width = _dimension(graph, 1), _dimension(graph, 2)
    smaller, edge = graph.add("Min", height, width), graph.constant([shorter], np.int64)
    new_height, new_width = (
        graph.add("Div", graph.add("Mul", edge, length), smaller) for length in (height, width)
    )  # rounded down
    return height, new_height, new_width


def _resized(graph: _Graph, pixels: str, sizes: str) -> str:
    resized = graph.add(
        "Resize",
        pixels,
        "",
        "",
        sizes,
        mode="cubic",
        antialias=1,
        cubic_coeff_a=-0.5,
        coordinate_transformation_mode="half_pixel",
        exclude_outside=1,
    )
    rounded = graph.add("Round", resized)
    return graph.add("Clip", rounded, graph.constant(0, np.float32), graph.constant(255, np.float32))


def _middle(graph: _Graph, length: str, edge: str) -> str:
    """Where the square in the middle begins: half of what is too much, to the even number from a half, as Python."""
    rest = graph.add("Cast", graph.add("Sub", length, edge), to=TensorProto.DOUBLE)
    half = graph.add("Round", graph.add("Div", rest, graph.constant([2], np.float64)))
    return graph.add("Cast", half, to=TensorProto.INT64)
