"""The arithmetic of a training is counted as it is done."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import convnext
from convnext.comparison.flops import flops_by_epoch
from convnext.config import DataSettings, ModelSettings, RunSettings
from convnext.models.registry import resolve


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_an_epoch_is_forward_and_twice_that_backward_for_each_image(name: str) -> None:
    model = resolve(ModelSettings(name=name, in_channels=3))
    settings = RunSettings(epochs=4, model=model, data=DataSettings(image_size=64))
    with FlopCounterMode(display=False) as counter:
        convnext.create_model(name, 10).eval()(torch.zeros(1, 3, 64, 64))
    assert flops_by_epoch(settings, 10, 7) == pytest.approx([7 * 3 * counter.get_total_flops()] * 4, rel=1e-3)


def test_smaller_images_cost_less() -> None:
    settings = convnext.recipe("cifar10", **{"model.in_channels": 3, "data.image_size": 32, "data.start_size": 16})
    flops = flops_by_epoch(settings.replace(epochs=4), 10, 100)
    assert flops == sorted(flops)
    assert flops[0] < flops[-1] / 2
