"""Exported files: each says what its source says, on other machinery."""

import json
import math
import re
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import convnext
from convnext.cli import main
from convnext.config import DataSettings, ModelSettings
from convnext.data.images import Picture
from convnext.errors import CheckpointError, SettingsError, UserError
from convnext.inference.backends import ExportInfo, logits_of, open_file
from convnext.inference.backends.eager import EagerBackend
from convnext.inference.export import onnx_file, openvino_file
from convnext.inference.export.acceptance import Examination, Export
from convnext.inference.export.export import FORMATS, export
from convnext.inference.export.formats import Source, check_size
from convnext.inference.exported import evaluate_file
from convnext.inference.preparation import prepare, prepare_reduced
from convnext.models import registry
from convnext.weights.model_info import ModelInfo

SUFFIXES = (".onnx", ".xml", ".pt2", "")  # of FORMATS


@pytest.fixture
def run(digits_run: convnext.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True))


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_a_file_is_used_as_its_run(
    name: str, run: Path, digits_run: convnext.Run, digits_images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--format", name]) == 0
    output = capfd.readouterr()
    path = Path(output.out.strip())
    assert path.parent == run
    assert "compared with its source on 72 test images" in output.err
    image = next((digits_images / "test" / "3").iterdir())
    trust = ["--trust"] if name == "torch" else []
    assert main(["predict", str(path), str(image), "--json", *trust]) == 0
    best = json.loads(capfd.readouterr().out)[0]["predictions"]
    expected = convnext.Predictor.load(run)(image)
    assert [one["class"] for one in best] == [one.class_name for one in expected]
    np.testing.assert_allclose(
        [one["probability"] for one in best], [one.probability for one in expected], atol=1e-5, rtol=0
    )
    report = evaluate_file(path, trust=True)
    assert (report.top1, report.count) == (digits_run.report.top1, digits_run.report.count)
    assert json.loads((run / f"{path.stem}_test_report.json").read_text())["top1"] == report.top1
    with pytest.raises(SettingsError, match="exists already"):
        export(run, name)


@pytest.mark.parametrize(("name", "precision"), [("onnx", "fp16"), ("onnx", "int8"), ("openvino", "int8")])
def test_a_lower_precision_is_measured_on_the_whole_test_split(name: str, precision: str, run: Path) -> None:
    made = export(run, name, precision=precision, max_drop=1.0)  # type: ignore[arg-type]
    assert made.top1 is not None
    assert made.source_top1 is not None
    assert made.top1 >= made.source_top1 - 0.01
    assert 0 < made.comparison.difference < 0.2 * made.comparison.scale


def test_a_precision_that_costs_too_much_is_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was not written: fp16 has .* allow more with --max-drop"):
        export(run, precision="fp16", max_drop=-100)
    assert not [*run.glob("model*"), *run.glob(".model*")]


@pytest.fixture(scope="module")
def source() -> Source:
    """A small colour model of random weights, whose images are cropped in the middle."""
    settings = registry.resolve(ModelSettings(name="convnext_atto", depths=(1, 1), dims=(8, 16)), 3)
    mean, std = (0.48, 0.46, 0.41), (0.23, 0.22, 0.22)
    info = ModelInfo(model=settings, classes=("a", "b", "c"), mean=mean, std=std, image_size=32, center_crop=0.875)
    torch.manual_seed(0)
    details = ExportInfo(version="1", precision="fp32", preprocessing=True, licence="", model=info, data=DataSettings())
    model = registry.build(settings, 3)
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    return Source(model.eval(), details, [])


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_preprocessing_inside_gives_what_evaluation_does(name: str, source: Source, tmp_path: Path) -> None:
    path = tmp_path / f"model{FORMATS[name].suffix}"
    (onnx_file if name == "onnx" else openvino_file).write(source, path)
    exported, eager = open_file(path), EagerBackend(source.model, source.info.model, "cpu")
    random = np.random.default_rng(0)
    for height, width in ((32, 32), (37, 37), (50, 90), (91, 33), (20, 25), (300, 200), (285, 285)):
        coarse = random.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
        picture = Picture(coarse.repeat(4, 0).repeat(4, 1)[:height, :width].copy(), 3)
        expected = logits_of(eager, [prepare(picture, eager)])
        for inside in (prepare, prepare_reduced):
            np.testing.assert_allclose(logits_of(exported, [inside(picture, exported)]), expected, atol=0.03, rtol=0)
        assert min(prepare_reduced(picture, exported).shape[:2]) <= 37  # of which 32 are the middle


def test_a_batch_may_have_any_size_and_other_images_are_refused(run: Path) -> None:
    backend = open_file(export(run).path)
    info = backend.info
    images = np.random.default_rng(0).integers(0, 256, (9, info.image_size, info.image_size, 1), np.uint8)
    together = backend(images)
    np.testing.assert_allclose(together, np.concatenate([backend(image[None]) for image in images]), atol=1e-4, rtol=0)
    with pytest.raises(SettingsError, match=r"images: uint8 \(N, 8, 8, 1\) are wanted, got uint8 \(9, 7, 8, 1\)"):
        backend(images[:, 1:])


def test_files_that_cannot_be_used_are_one_line(run: Path, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="was not written by convnext export"):
        convnext.Predictor.load(tmp_path / "foreign.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot read"):
        convnext.Predictor.load(tmp_path / "damaged.onnx")
    program = export(run, "torch").path
    with pytest.raises(SettingsError, match=r"can run code .*--trust"):
        convnext.Predictor.load(program)
    graph = export(run, "openvino").path
    graph.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"has its weights in model\.bin, which is not beside it"):
        convnext.Predictor.load(graph)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onx"], "no export format is called 'onx': did you mean onnx"),
        (["--precision", "bf16"], "no bf16 on the CPU: choose --precision fp32, fp16 or int8, or openvino"),
        (["--format", "torch", "--precision", "int8"], "torch has no int8 export"),
        (["--format", "hub", "--public"], "--public is of the repository that --push makes: give --push owner/name"),
        (["--output", "model.pt"], "model.pt: a file of this format ends in .onnx"),
        (["--output", "nowhere/model.onnx"], "folder nowhere is not there: make it first"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    words: list[str], message: str, run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    files = sorted(run.rglob("*"))
    assert main(["export", str(run), *words]) == 2
    assert message in capfd.readouterr().err.replace("\n", " ")
    assert sorted(run.rglob("*")) == files


class Branching(torch.nn.Module):
    """A model that has no graph."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch"])
def test_a_model_without_a_graph_is_one_line_and_no_file(name: str, source: Source, tmp_path: Path) -> None:
    described = source.info.model_copy(update={"preprocessing": False})
    writer = import_module(f"convnext.inference.export.{FORMATS[name].module}")
    with pytest.raises(UserError, match=r"^torch\.export cannot take this model: [^\n]*; choose --format hub[^\n]*$"):
        writer.write(replace(source, model=Branching(), info=described), tmp_path / f"model{FORMATS[name].suffix}")
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_too_large_for_a_graph_is_refused() -> None:
    with torch.device("meta"):
        large, larger = torch.nn.Linear(30_000, 20_000), torch.nn.Linear(60_000, 20_000)
    check_size(large, "fp16")
    with pytest.raises(UserError, match=r"has 2\.40 GB of weights, .* choose --format onnx --precision fp16, --format"):
        check_size(large, "fp32")
    with pytest.raises(UserError, match=r"has 2\.40 GB of weights, .* choose --format torch or hub, or backend eager"):
        check_size(larger, "fp16")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A system that writes no file of more than 500,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("run", "small_disk")
@pytest.mark.parametrize(
    "words",
    [f"export RUN --format {name} --output out/model{end}" for name, end in zip(FORMATS, SUFFIXES, strict=True)]
    + [f"convert RUN out/model{end}" for end in (".pth", ".safetensors")],
)
def test_a_full_disk_is_one_line_and_no_file(
    words: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert main(words.replace("RUN", str(run)).split()) == 2
    assert re.match(r"convnext: .*out/", capfd.readouterr().err.splitlines()[-1])
    assert list((tmp_path / "out").iterdir()) == []


def test_logits_that_are_no_numbers_do_not_pass(run: Path, tmp_path: Path) -> None:
    folder = (run / "checkpoints" / "last").resolve()
    tensors = load_file(folder / "model.safetensors")
    tensors["head.bias"][3] = math.nan
    save_file(tensors, folder / "model.safetensors")
    (folder / "sha256.json").unlink()
    for name, precision, suffix in (("onnx", "fp32", ".onnx"), ("onnx", "fp16", ".onnx"), ("hub", "fp32", "")):
        with pytest.raises(CheckpointError, match=r"was not written: the source's logits are no numbers"):
            export(run, name, precision=precision, output=tmp_path / f"model{suffix}", max_drop=math.inf)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("model*"))
    with pytest.raises(SettingsError, match="max-drop: must be a number, or inf, got nan"):
        export(run, precision="fp16", max_drop=math.nan)
    tensors["head.bias"][3] = 1e6  # more than fp16 has
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"was not written: its logits are no numbers .*another --precision"):
        export(run, precision="fp16", output=tmp_path / "model.onnx", max_drop=math.inf)
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize(("name", "suffix"), [("onnx", ".onnx"), ("hub", "")])
def test_a_file_of_another_export_that_was_quicker_is_left_alone(
    name: str, suffix: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, examine = tmp_path / f"model{suffix}", Examination.export

    def examine_while_another_writes(examination: Examination) -> Export:
        result = examine(examination)
        path.write_text("the other's")
        return result

    monkeypatch.setattr(Examination, "export", examine_while_another_writes)
    with pytest.raises(SettingsError, match="exists already"):
        export(run, name, output=path)
    assert path.read_text() == "the other's"
