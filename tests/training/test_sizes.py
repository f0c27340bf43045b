"""The side of the images, which may differ by epoch, and between training and evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import convnext
from convnext import recipe
from convnext.errors import SettingsError
from convnext.models.convnext import ConvNeXt
from convnext.training.resolve import prepare


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


@pytest.mark.parametrize(
    ("data", "model", "complaint"),
    [
        ({"image_size": 256, "train_size": 224}, "timm:vit_tiny_patch16_224", "does not take images of 256 px"),
        ({"image_size": 224, "train_size": 192}, "timm:vit_tiny_patch16_224", "does not take images of 192 px"),
        ({"image_size": 224, "start_size": 128}, "timm:vit_tiny_patch16_224", "does not take images of 128 px"),
        ({"image_size": 64, "train_size": 24}, "convnext_atto", "images of 24 px are too small"),
    ],
)
def test_images_of_every_size_are_checked_before_training(
    data: dict[str, Any], model: str, complaint: str, tmp_path: Path
) -> None:
    shape = {"depths": None, "dims": None, "patch_size": None, "layer_scale": "variant", "name": model}
    settings = recipe("digits").replace(output=tmp_path / "runs", data=data, model=shape)
    with pytest.raises(SettingsError, match=complaint):
        prepare(settings)


def test_a_module_of_ones_own_is_tried_with_images_of_every_size() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 10))
    settings = recipe("digits", data={"image_size": 16, "workers": 0})
    assert prepare(settings, module)[0].data.image_size == 16
    with pytest.raises(SettingsError, match=r"does not take images \(2, 1, 12, 12\)"):
        prepare(settings.replace(**{"data.train_size": 12}), module)


@pytest.mark.parametrize(("image_size", "center_crop", "needed"), [(512, 1.0, 512), (352, 0.875, 402)])
def test_a_cache_of_smaller_images_than_evaluation_takes_is_refused(
    image_size: int, center_crop: float, needed: int, small_folder: Path, tmp_path: Path
) -> None:
    data = {"name": "folder", "root": small_folder, "image_size": image_size, "center_crop": center_crop}
    settings = recipe("digits").replace(data=data | {"cache": "disk"})
    with pytest.raises(SettingsError, match=f"data.cache disk .*: raise data.cache_image_size to {needed}, or"):
        prepare(settings)
    with pytest.raises(SettingsError, match=r"raise data\.cache_image_size"):
        convnext.train(settings.replace(output=tmp_path), resume=True)
    assert not list(tmp_path.glob("digits*"))
    prepare(settings.replace(**{"data.cache_image_size": needed}))
    prepare(settings.replace(**{"data.cache": "none"}))
    prepare(recipe("digits", data={"image_size": image_size, "cache": "disk"}))  # in memory, without a file
