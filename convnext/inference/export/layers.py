"""The layers of a model that multiply matrices or convolve: their names, and what int8 costs in each."""

import re

import numpy as np
import torch
from torch import Tensor, fx

from convnext.data.progress import tracked
from convnext.inference.backends import normalized
from convnext.inference.export.formats import Source, capture

_PRODUCTS = re.compile(r"aten\.(conv|linear|addmm|bmm|matmul|mm|scaled_dot_product)")
_IMAGES = 16  # at most, that a layer's error is measured on


def layer_names(program: torch.export.ExportedProgram) -> dict[str, str]:
    """What the layers are called, by the names of their nodes in the graph: as their weights, or where two activations
    are multiplied as the module and the node."""
    names: dict[str, str] = {}
    for node in program.module().graph.nodes:
        if node.op != "call_function" or not _PRODUCTS.match(str(node.target)):
            continue
        weight = node.args[1]
        name = str(weight.target).removesuffix(".weight") if weight.op == "get_attr" else ""
        if not name or name in names.values():  # two layers may have the same weights
            module = [path for path, _ in node.meta.get("nn_module_stack", {"": ("", "")}).values()][-1]
            name = f"{module}.{node.name}".removeprefix(".")
        names[node.name] = name
    return names


@torch.no_grad()
def ranked_layers(source: Source) -> list[str]:
    """Names of the layers, those first that change the logits most where they alone compute in int8.

    This is simulated in PyTorch, whatever the format: weights have a scale a row, activations one a tensor.
    """
    program = capture(source)
    graph, names = program.module(), layer_names(program)
    spread = source.calibration[:: -(-len(source.calibration) // _IMAGES)]
    images = torch.from_numpy(normalized(np.stack(spread), source.info.model))
    expected = fx.Interpreter(graph).run(images)
    errors: dict[str, float] = {}
    for node, name in tracked(names.items(), len(names), "looking for the layers that int8 harms"):
        errors[name] = float((_WithOneInInt8(graph, node).run(images) - expected).square().sum())
    return sorted(errors, key=errors.__getitem__, reverse=True)


class _WithOneInInt8(fx.Interpreter):
    """A graph that computes as it does, but for the one node that is called ``chosen``."""

    def __init__(self, graph: fx.GraphModule, chosen: str) -> None:
        super().__init__(graph)
        self.chosen = chosen

    def run_node(self, n: fx.Node) -> object:
        """The value of a node."""
        if n.name != self.chosen:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        rounded = [
            _rounded(value, by_row=isinstance(node, fx.Node) and node.op == "get_attr")
            if isinstance(value, Tensor) and value.ndim > 1  # a bias stays
            else value
            for node, value in zip(n.args, args, strict=True)
        ]
        return self.call_function(n.target, tuple(rounded), kwargs)


def _rounded(values: Tensor, by_row: bool) -> Tensor:
    """The values that 8 bits leave of these, with a scale for each row or one for all."""
    largest = values.abs().flatten(1).amax(1) if by_row else values.abs().amax()
    scale = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    scale = scale.reshape(-1, *[1] * (values.ndim - 1)) if by_row else scale
    return (values / scale).round() * scale
