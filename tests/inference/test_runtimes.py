"""A run on ONNX Runtime or OpenVINO: the same answers, exported once, made again where it is damaged."""

import copy
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convnext
from convnext.cli import main
from convnext.errors import CheckpointError, SettingsError
from convnext.inference import runtimes
from convnext.inference.export import onnx_file, openvino_file
from convnext.inference.export.export import export
from convnext.inference.export.formats import Source

RUNTIMES = ["onnxruntime", "openvino"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which backends are soon measured, each as much slower as the others."""
    monkeypatch.setattr(runtimes, "time", SimpleNamespace(perf_counter=lambda: 20 * time.perf_counter()))


@pytest.fixture
def run(digits_run: convnext.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True))


def image_of(digits_images: Path) -> Path:
    return next((digits_images / "test" / "3").iterdir())


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_says_what_the_run_says_and_is_exported_once(
    name: str, cache: Path, run: Path, digits_run: convnext.Run, digits_images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = image_of(digits_images)
    expected = convnext.Predictor.load(run)(image)
    assert not cache.exists()
    for times in (1, 0):
        predictor = convnext.Predictor.load(run, backend=name)
        assert predictor.backend.name == name
        assert capfd.readouterr().err.count("exporting") == times
    best = predictor(image)
    assert [one.class_name for one in best] == [one.class_name for one in expected]
    np.testing.assert_allclose([one.probability for one in best], [one.probability for one in expected], atol=1e-5)
    assert main(["evaluate", str(run), "--backend", name, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["top1"], report["count"]) == (digits_run.report.top1, digits_run.report.count)
    assert (run / f"test-{name}_report.json").is_file()


def test_what_is_damaged_or_half_written_is_made_again(
    cache: Path, run: Path, digits_images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = convnext.Predictor.load(run, backend="onnxruntime")(image_of(digits_images))
    (file,) = cache.rglob("model.onnx")
    for damage in (file.read_bytes()[:-1], None):
        if damage is None:
            (file.parent / "digests.json").unlink()
        else:
            file.write_bytes(damage)
        half = file.parent.with_name(f".{file.parent.name}.unfinished")
        half.mkdir()
        (half / "model.onnx").write_bytes(b"half")
        capfd.readouterr()
        assert convnext.Predictor.load(run, backend="onnxruntime")(image_of(digits_images)) == expected
        assert "exporting" in capfd.readouterr().err
        assert sorted(path.name for path in file.parent.parent.iterdir()) == [file.parent.name]


def test_other_weights_are_another_export(cache: Path, run: Path, digits_images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(run / "checkpoints" / "last" / name, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["head.bias"][7] += 100
    save_file(tensors, folder / "model.safetensors")
    image = image_of(digits_images)
    best = [convnext.Predictor.load(path, backend="onnxruntime")(image)[0].class_name for path in (run, folder)]
    assert best == ["3", "7"]
    assert len(list(cache.rglob("model.onnx"))) == 2


@pytest.mark.usefixtures("hurried")
def test_auto_takes_the_fastest_and_remembers_it(cache: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = convnext.Predictor.load(run, backend="auto")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("backend ")]
    (remembered,) = cache.rglob("fastest-*.json")
    rates = json.loads(remembered.read_text())
    assert set(rates) == {"eager", *RUNTIMES}
    assert first.backend.name == max(rates, key=rates.__getitem__)
    assert line.startswith(f"backend {first.backend.name}, the fastest here for this model: {first.backend.name} ")
    for fastest in (*RUNTIMES, "eager"):
        remembered.write_text(json.dumps(dict.fromkeys(rates, 1.0) | {fastest: 2.0}))
        assert convnext.Predictor.load(run, backend="auto").backend.name == fastest
        assert "exporting" not in capfd.readouterr().err
    for damaged in ("[", '{"other": 1}'):
        remembered.write_text(damaged)
        assert convnext.Predictor.load(run, backend="auto").backend.name in rates
        assert set(json.loads(remembered.read_text())) == set(rates)


@pytest.mark.usefixtures("hurried")
def test_an_export_that_is_not_its_source_is_an_error_and_left_out_by_auto(
    cache: Path, run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(source: Source, path: Path) -> None:
        """A file of other weights."""
        model = copy.deepcopy(source.model)
        torch.nn.init.normal_(model.get_parameter("head.bias"))
        real(replace(source, model=model), path)

    real = onnx_file.write
    monkeypatch.setattr(onnx_file, "write", write)
    monkeypatch.setattr(openvino_file, "write", write)
    with pytest.raises(CheckpointError, match="its logits differ from the source's by up to"):
        convnext.Predictor.load(run, backend="onnxruntime")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    capfd.readouterr()
    assert convnext.Predictor.load(run, backend="auto").backend.name == "eager"
    said = capfd.readouterr().err
    assert "backend onnxruntime is left out: " in said
    assert "backend openvino is left out: " in said
    assert "backend eager, the fastest here for this model" in said


@pytest.mark.usefixtures("cache", "hurried")
def test_auto_leaves_out_what_a_model_cannot_be_exported_for(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("an operation that ONNX lacks\nand its traceback")

    monkeypatch.setattr(torch.onnx, "export", fail)
    assert convnext.Predictor.load(run, backend="auto").backend.name == "eager"
    error = capfd.readouterr().err
    for name in RUNTIMES:
        assert f"backend {name} is left out: torch.onnx cannot take this model: an operation that ONNX lacks;" in error
    assert main(["export", str(run)]) == 2
    assert "convnext: torch.onnx cannot take this model" in capfd.readouterr().err
    assert not list(run.glob("*.onnx"))


@pytest.mark.usefixtures("cache")
def test_the_export_predicts_without_pytorch(run: Path, digits_images: Path) -> None:
    program = (
        "import sys, convnext; from pathlib import Path\n"
        "print(convnext.Predictor.load(sys.argv[1], backend='onnxruntime')(Path(sys.argv[2]))[0].class_name)\n"
        "print('torch' in sys.modules)\n"
    )
    convnext.Predictor.load(run, backend="onnxruntime")
    words = [sys.executable, "-c", program, str(run), str(image_of(digits_images))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]


@pytest.mark.usefixtures("cache")
def test_what_cannot_be_is_one_line(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load = convnext.Predictor.load
    with pytest.raises(SettingsError, match="no backend is called 'openvno': did you mean openvino"):
        load(run, backend="openvno")
    with pytest.raises(SettingsError, match="backend openvino computes on the CPU, not on cuda"):
        load(run, backend="openvino", device="cuda")
    with pytest.raises(SettingsError, match="a module of one's own computes in PyTorch"):
        load(run, backend="openvino", model=load(run).model)
    with pytest.raises(CheckpointError, match="run folder nowhere is not there"):
        load("nowhere", backend="auto")
    file = export(run).path
    assert load(file, backend="auto").backend.name == "onnxruntime"
    with pytest.raises(SettingsError, match=r"model\.onnx is for backend onnxruntime, not openvino"):
        load(file, backend="openvino")
    for words, message in (
        (["evaluate", str(file), "--backend", "eager"], "is for backend onnxruntime, not eager"),
        (["evaluate", str(run), "--backend", "onnxruntime", "--data.workers", "1"], "--data.workers is of PyTorch"),
        (["predict", str(run), str(file), "--backend", "openvno"], "not 'openvno': did you mean openvino?"),
        (["predict", "convnext_tiny:in1k:x", str(file), "--backend", "onnxruntime"], "'in1k:x': did you mean in1k"),
    ):
        assert main(words) == 2
        assert message in capfd.readouterr().err
