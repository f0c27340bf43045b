"""What `convnext benchmark` prints, on models that take no time; how fast they are is asserted nowhere."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import convnext
from convnext.cli import main
from convnext.errors import SettingsError, UserError
from convnext.inference.benchmark.measuring import in_child
from convnext.inference.benchmark.subject import entries, find_subject
from convnext.inference.export.export import export
from convnext.output import counted
from convnext.storage.measurements import cpu_name

KEYS = ["model", "backend", "precision", "batch", "images_per_second", "p50_ms", "p95_ms", "top1"]
QUICK = ["--seconds", "0.01", "--rounds", "1", "--batch-sizes", "4"]


def measured(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    """The rows that the command prints, and what it says."""
    assert main(["benchmark", *words, *QUICK, "--json"]) == 0
    output = capfd.readouterr()
    return json.loads(output.out), output.err


def test_a_run_is_measured_on_every_backend(digits_run: convnext.Run, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--backends", "eager", "onnxruntime", "openvino", "--precisions", "fp32", "--images", "100"]
    rows, said = measured([str(digits_run.path), *words], capfd)
    assert all(list(row) == KEYS for row in rows)
    assert sorted((row["model"], row["backend"], row["precision"]) for row in rows) == [
        ("ours", "eager", "fp32"),
        ("ours", "onnxruntime", "fp32"),
        ("ours", "openvino", "fp32"),
    ]
    rates = [row["images_per_second"] for row in rows]
    assert rates == sorted(rates, reverse=True)
    for row in rows:
        assert row["batch"] in (1, 4)
        assert row["images_per_second"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"]
    assert len({row["top1"] for row in rows}) == 1
    assert rows[0]["top1"] > 0.8
    assert "left out: timm: timm's convnext_tiny has other layers" in said
    assert f"3 entries, {counted(torch.get_num_threads(), 'thread')} each: about" in said


def test_a_model_by_name_is_measured_beside_its_peers(capfd: pytest.CaptureFixture[str]) -> None:
    rows, said = measured(["convnext_atto", "--image-size", "32", "--backends", "eager"], capfd)
    assert sorted((row["model"], row["precision"]) for row in rows) == [
        *(("ours", "bf16"), ("ours", "fp32"), ("timm", "bf16"), ("timm", "fp32"))
    ]
    assert {row["top1"] for row in rows} == {None}
    assert "left out: torchvision: torchvision has no convnext_atto" in said


def test_int8_of_a_model_by_name_is_calibrated_on_random_images(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["resnet18", "--image-size", "32", "--models", "ours", "--backends", "openvino", "--precisions", "int8"]
    rows, said = measured(words, capfd)
    assert [(row["precision"], row["top1"]) for row in rows] == [("int8", None)]
    assert "int8 is calibrated on random images: its speed is meant, not its accuracy" in said


@pytest.mark.slow
def test_compiled_models_are_measured(capfd: pytest.CaptureFixture[str]) -> None:
    rows, _ = measured(["resnet18", "--image-size", "32", "--backends", "compile"], capfd)
    assert {(row["model"], row["precision"]) for row in rows} == {
        (model, precision) for model in ("ours", "timm", "torchvision") for precision in ("fp32", "bf16")
    }


def test_an_exported_file_is_measured_where_it_runs(
    digits_run: convnext.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = export(digits_run.path, precision="fp16", output=tmp_path / "model.onnx", max_drop=1.0).path
    rows, _ = measured([str(path), "--images", "40"], capfd)
    assert [(row["model"], row["backend"], row["precision"]) for row in rows] == [("ours", "onnxruntime", "fp16")]
    assert rows[0]["top1"] > 0.8


def test_speed_stays_where_top1_cannot_be_had(
    digits_run: convnext.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(digits_run.path, tmp_path / "digits", symlinks=True))
    weights = run / "checkpoints" / "last" / "model.safetensors"
    tensors = load_file(weights)
    tensors["head.bias"][3] = math.nan
    save_file(tensors, weights)
    (weights.parent / "sha256.json").unlink()
    rows, said = measured([str(run), "--models", "ours", "--backends", "eager", "--images", "8"], capfd)
    assert {(row["precision"], row["top1"]) for row in rows} == {("fp32", None), ("bf16", None)}
    assert all(row["images_per_second"] > 0 for row in rows)
    assert "no top-1 of ours eager fp32: backend eager: the model's logits are no numbers" in said


def test_the_table_has_the_machine_and_the_ratio_to_timm(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["resnet18", "--image-size", "32", "--models", "timm", "--backends", "eager", "--precisions", "fp32"]
    assert main(["benchmark", *words, *QUICK]) == 0
    machine, header, _, row = capfd.readouterr().out.splitlines()
    assert machine.endswith(f", {counted(torch.get_num_threads(), 'thread')}")
    assert header.split()[:4] == ["model", "backend", "precision", "images/s"]
    assert row.split()[:3] == ["timm", "eager", "fp32"]
    assert row.split()[-1] == "1.00"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["convnext_tinny"],
            "convnext_tinny is no run or exported file that is there, and no model's name: did you mean",
        ),
        (["timm:convnext_tinny"], "timm has no model 'convnext_tinny': did you mean"),
        (["resnet18", "--backends", "onxruntime"], "openvino, not 'onxruntime': did you mean onnxruntime?"),
        (["resnet18", "--batch-sizes", "0"], "batch-sizes: must be at least 1"),
        (["resnet18", "--threads", "0"], "threads: must be at least 1"),
        (["resnet18", "--seconds", "0"], "seconds: must be a number above 0, got 0"),
        (["resnet18", "--images", "-1"], "images: must be at least 0, got -1"),
        (["resnet18", "--models", "timm", "--backends", "openvino"], "nothing is left to measure"),
        (["convnext_tiny", "--image-size", "8"], "images of 8 px are too small"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *words]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert message in output.err
    assert len(output.err.splitlines()) == 1


def test_the_machine_is_the_one_that_computed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a graphics card, which --device cpu leaves alone
    words = ["resnet18", "--image-size", "32", "--models", "ours", "--backends", "eager", "--precisions", "fp32"]
    assert main(["benchmark", *words, *QUICK, "--device", "cpu"]) == 0
    assert capfd.readouterr().out.startswith(f"{cpu_name()}, ")


def test_where_the_cpu_alone_computes_the_error_says_so() -> None:
    subject = find_subject("resnet18", image_size=32)
    with pytest.raises(SettingsError, match="nothing is left to measure: give --device cpu, or ask for other --models"):
        entries(subject, ["ours"], ["onnxruntime", "openvino"], ["fp32"], "cuda")
    with pytest.raises(SettingsError, match="nothing is left to measure: ask for other --models"):
        entries(subject, ["timm"], ["onnxruntime"], ["fp32"], "cuda")


def test_a_process_that_dies_is_an_error_of_its_own() -> None:
    with pytest.raises(UserError, match="its process died"):
        in_child(os._exit, 1)
    with pytest.raises(UserError, match="invalid literal"):
        in_child(int, "x")
    assert in_child(abs, -1) == 1
