"""The arithmetic of a training is counted as it is done."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import convnext
from convnext.comparison.budget import flops
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
    by_epoch = flops_by_epoch(settings.replace(epochs=4), 10, 100)
    assert by_epoch == sorted(by_epoch)
    assert by_epoch[0] < by_epoch[-1] / 2


def test_a_proxy_judges_all_images_and_some_are_trained_on(tmp_path: Path) -> None:
    tiny = {"depths": (1, 1), "dims": (8, 16), "in_channels": 1}
    settings = convnext.recipe("digits", epochs=1, output=tmp_path, model=tiny, trackers=(), batch_size=64)
    run = convnext.train(settings)
    (plain,) = flops_by_epoch(run.settings, 10, 64)
    with_proxy = run.settings.replace(proxy_from=run.path, proxy_keep=0.25)
    (all_of_them,) = flops_by_epoch(with_proxy, 10, 64, run.settings.model)
    assert all_of_them == pytest.approx(plain + 256 * plain / 64 / 3)
    by_plan = flops(with_proxy, 10, 1024)
    assert by_plan == pytest.approx(4 * all_of_them)  # 256 of 1024 images are trained on
