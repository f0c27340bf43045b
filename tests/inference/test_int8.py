"""int8: what runs in it is counted, and layers that it breaks stay in float."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import convnext
from convnext.cli import main
from convnext.config import DataSettings, ModelSettings
from convnext.errors import CheckpointError, UserError
from convnext.inference.backends import ExportInfo, read_info
from convnext.inference.export import onnx_file
from convnext.inference.export.export import FORMATS, export
from convnext.inference.export.formats import Source
from convnext.inference.export.layers import ranked_layers
from convnext.inference.export.quantization import products_onnx, require_int8
from convnext.runs import checkpoint
from convnext.storage.files import digest
from convnext.weights.model_info import ModelInfo

BROKEN = "stages.0.0.pwconv1"


@pytest.fixture
def broken(digits_run: convnext.Run, tmp_path: Path) -> Path:
    """The digits' run, whose function is the same, with one channel before a layer 10,000 times as large."""
    run = Path(shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True))
    folder = checkpoint.find(run).resolve()
    path, digests = folder / "model.safetensors", folder / "sha256.json"
    tensors = load_file(path)
    for name in ("weight", "bias"):
        tensors[f"stages.0.0.norm.{name}"][0] *= 1e4
    tensors[f"{BROKEN}.weight"][:, 0] /= 1e4
    save_file(tensors, path)
    digests.write_text(json.dumps(json.loads(digests.read_text()) | {path.name: digest(path)}))
    return run


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_layer_that_int8_breaks_is_left_in_float(
    name: str, broken: Path, digits_run: convnext.Run, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(broken), "--format", name, "--precision", "int8"]) == 0
    output = capfd.readouterr()
    lines = output.err.splitlines()
    assert re.fullmatch(r"int8 has \d\d\.\d\d % top-1 on the test split, and the source \d\d\.\d\d %", lines[0])
    assert "with 1 layer in float int8 costs" in lines[1]
    assert "images of the val split" in lines[1]
    assert f"left in float to keep the accuracy: {BROKEN}" in lines
    count, of = map(int, re.search(r"^int8: (\d+) of (\d+) products$", output.err, re.MULTILINE).groups())  # type: ignore[union-attr]
    assert count == {"onnx": 7, "openvino": 15}[name]  # ONNX Runtime convolves in float before a layer norm
    assert of == 16
    info = read_info(Path(output.out.strip()))
    assert (info.precision, info.float_layers) == ("int8", (BROKEN,))
    measured = float(lines[-1].partition(": ")[2].partition(" ")[0])
    assert measured >= 100 * digits_run.report.top1 - 0.3


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_the_products_are_those_of_the_model(name: str, digits_run: convnext.Run, tmp_path: Path) -> None:
    files = (tmp_path / f"{inside}{FORMATS[name].suffix}" for inside in (False, True))
    counts = {
        export(digits_run.path, name, precision="int8", include_preprocessing=inside, output=file).products
        for inside, file in zip((False, True), files, strict=True)
    }
    assert counts == {{"onnx": (8, 16), "openvino": (16, 16)}[name]}


@pytest.mark.slow  # four quantizations
def test_what_no_layer_in_float_mends_is_refused(broken: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"int8 has .* choose another --precision, or allow more with --max-drop"):
        export(broken, "openvino", precision="int8", max_drop=-100)
    tried = re.findall(r"with (\d+) layers? in float", capfd.readouterr().err)
    assert tried == ["1", "2", "4", "8"]
    assert not [*broken.glob("*model*"), *broken.glob(".*model*")]


class Attention(nn.Module):
    """Layers that are modules, one that is a function of its weights, as in Swin, and products of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        query, key, value = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        logits: Tensor = self.head(((query @ key.transpose(1, 2)).softmax(-1) @ value).mean(1))
        return logits


@pytest.fixture(scope="module")
def attention() -> Source:
    statistics = (0.5,) * 3
    info = ModelInfo(
        model=ModelSettings(), classes=("a", "b"), mean=statistics, std=statistics, image_size=16, center_crop=1.0
    )
    details = ExportInfo(
        version="1", precision="int8", preprocessing=False, licence="", model=info, data=DataSettings()
    )
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
    return Source(Attention().eval(), details, list(images))


def test_layers_have_the_names_of_their_weights_in_the_graph(attention: Source) -> None:
    ranked = ranked_layers(attention)
    graph = onnx_file.graph(attention)
    named = [node.name for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert sorted(ranked) == sorted(named)
    assert set(named) == {"stem", "qkv", "matmul", "matmul_1", "head"}


def test_an_export_without_int8_is_refused(attention: Source, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_file.graph(attention).SerializeToString())
    done = products_onnx(path)
    assert [product.is_int8 for product in done] == [False] * len(done)
    with pytest.raises(UserError, match="every operation stayed in float, so nothing was written"):
        require_int8(sum(product.is_int8 for product in done))
