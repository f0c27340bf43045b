"""The side of the images, which may differ by epoch, and between training and evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import convnext
from convnext import recipe
from convnext.models.convnext import ConvNeXt


def test_training_sees_smaller_images_than_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, list[int]] = {True: [], False: []}
    forward = ConvNeXt.forward

    def note(model: ConvNeXt, x: Tensor) -> Tensor:
        if not seen[model.training] or seen[model.training][-1] != x.shape[-1]:
            seen[model.training].append(x.shape[-1])
        return forward(model, x)

    monkeypatch.setattr(ConvNeXt, "forward", note)
    sizes: dict[str, Any] = {"image_size": 16, "train_size": 12, "start_size": 8, "full_size_from": 0.5, "workers": 0}
    model: dict[str, Any] = {"depths": (1, 1), "dims": (4, 8), "patch_size": 2}
    run = convnext.train(recipe("digits", epochs=4, output=tmp_path, data=sizes, model=model, trackers=()))
    assert seen == {True: [8, 10, 12], False: [16]}
    assert json.loads((run.path / "checkpoints" / "last" / "model.json").read_text())["image_size"] == 16
