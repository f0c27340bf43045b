"""Every format of every kind of model: the file is evaluated and predicts as its run does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torchvision.models import SwinTransformer

import convnext
from convnext.inference.export.export import FORMATS, export
from convnext.inference.exported import evaluate_file
from convnext.inference.predictor import Predictor
from convnext.models.registry import register_model

MODELS: dict[str, dict[str, Any]] = {
    "convnext": {},
    "v2": {"model.name": "convnextv2_atto", "model.depths": (1, 1), "model.dims": (16, 32), "model.patch_size": 2},
    "roadmap": {"model.name": "roadmap", "model.step": 7},
    "resnet18": {"model.name": "resnet18", "model.patch_size": 1},
    "swin": {"model.name": "small_swin"},
}
HAS = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "torch": ("fp32", "fp16", "bf16"),
}
INSIDE = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "int8"), "torch": ()}
FILES = [
    (name, precision, inside)
    for inside, formats in ((False, HAS), (True, INSIDE))
    for name, precisions in formats.items()
    for precision in precisions
]


def small_swin(num_classes: int, in_channels: int = 1) -> nn.Module:
    """The baseline's layers, shifted windows among them, in less than its 28 million parameters."""
    model: Any = SwinTransformer([1, 1], 16, [2, 2], [1, 2], [4, 4], num_classes=num_classes)
    model.features[0][0] = nn.Conv2d(in_channels, 16, 1)
    return model  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_file_has_its_runs_numbers(model: str, tmp_path: Path, digits_images: Path) -> None:
    if model == "swin":  # not before: other tests ask what models there are
        register_model("small_swin")(small_swin)
    settings = convnext.recipe("digits", epochs=2, batch_size=64, output=tmp_path, trackers=(), name=model)
    run = convnext.train(settings.replace(**MODELS[model]))
    images = sorted(str(path) for path in (digits_images / "test").rglob("*.png"))[::6]
    source = best(Predictor.load(run.path), images)
    for name, precision, inside in FILES:
        path = tmp_path / f"{name}-{precision}-{inside}{FORMATS[name].suffix}"
        options: Any = {"precision": precision, "include_preprocessing": inside}
        made = export(run.path, name, output=path, max_drop=5.0, **options)
        report = evaluate_file(path, trust=True)
        classes = best(Predictor.load(path, trust=True), images)
        same = np.mean([ours == theirs for ours, theirs in zip(source, classes, strict=True)])
        if precision == "fp32":
            assert report.confusion == run.report.confusion
            assert (report.top1, report.macro_f1) == (run.report.top1, run.report.macro_f1)
            assert same == 1
        else:
            assert report.top1 == made.top1
            assert same >= 0.9


def best(predictor: Predictor, images: list[str]) -> list[str]:
    results = list(predictor.batches(images, top_k=1))
    return [result[0].class_name for result in results if not isinstance(result, Exception)]
