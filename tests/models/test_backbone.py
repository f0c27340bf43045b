"""Feature maps, and the detectors that use them."""

import math
import runpy
from pathlib import Path

import pytest
import torch

from convnext import create_model
from convnext.errors import SettingsError
from convnext.models.backbone import Backbone, FPNBackbone


def test_maps_of_the_chosen_stages() -> None:
    backbone = Backbone(create_model("convnext_atto"), out_indices=(1, 3))
    maps = backbone(torch.randn(2, 3, 96, 64))
    assert list(maps) == ["1", "3"]
    assert [tuple(x.shape) for x in maps.values()] == [(2, 80, 12, 8), (2, 320, 3, 2)]
    assert backbone.out_channels == [80, 320]
    assert backbone.strides == [8, 32]
    for x in maps.values():
        torch.testing.assert_close(x.mean(1), torch.zeros(x.shape[0], *x.shape[2:]), atol=1e-4, rtol=0)
    sum(x.square().sum() for x in maps.values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    with pytest.raises(SettingsError, match="the model has stages 0 to 3"):
        Backbone(create_model("convnext_atto"), out_indices=(4,))


def test_maps_are_those_of_the_classifier() -> None:
    model = create_model("convnext_atto", 7).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model.forward_features(images)
    torch.testing.assert_close(model.forward_stages(images)[-1], expected)
    torch.testing.assert_close(model.head(model.embed(images)), model(images))
    assert model.embed(images).shape == (2, 320)


def test_classifier_can_be_replaced() -> None:
    model = create_model("convnext_atto", 7)
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 320)


def test_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = create_model("convnext_atto", 3, stochastic_depth=0.5, layer_scale=1.0)
    images = torch.randn(2, 3, 32, 32)
    grads = []
    for model.checkpointing in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_feature_pyramid_levels() -> None:
    levels = FPNBackbone(create_model("convnext_atto"), out_channels=32)(torch.randn(1, 3, 64, 64))
    assert {name: tuple(x.shape[1:]) for name, x in levels.items()} == {
        "0": (32, 16, 16),
        "1": (32, 8, 8),
        "2": (32, 4, 4),
        "3": (32, 2, 2),
        "pool": (32, 1, 1),
    }


def test_the_detection_example_trains() -> None:
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "detection.py"))
    losses = example["main"]("convnext_atto", 64)
    assert len(losses) == 5
    assert all(math.isfinite(loss) for loss in losses.values())
