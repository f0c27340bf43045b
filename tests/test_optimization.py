"""Groups, schedule and moving average."""

import pytest
import torch
from torch import nn

from convnext import create_model, recipe
from convnext.training.optimization import average_weights, ema_decay, learning_rate, make_optimizer


def test_norms_biases_and_layer_scale_are_not_decayed() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = make_optimizer(model, recipe("digits").optimizer).param_groups
    assert decayed["weight_decay"] > 0
    assert spared["weight_decay"] == 0
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert decayed_names | spared_names == set(names.values())
    assert {"stages.0.0.gamma", "stages.0.0.norm.weight", "head.bias", "norm.weight"} <= spared_names
    assert {"stages.0.0.dwconv.weight", "head.weight", "downsample_layers.0.0.weight"} <= decayed_names


def test_schedule_warms_up_and_follows_the_cosine() -> None:
    settings = recipe(
        "digits", epochs=10, **{"optimizer.lr": 1e-3, "optimizer.warmup_epochs": 2, "optimizer.min_lr": 1e-5}
    )
    rates = [learning_rate(step, settings, steps_per_epoch=5) for step in range(51)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[30] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[50] == pytest.approx(1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_short_run_has_a_short_warm_up() -> None:
    settings = recipe("digits", epochs=2, **{"optimizer.warmup_epochs": 20})
    rates = [learning_rate(step, settings, steps_per_epoch=10) for step in range(20)]
    assert rates.index(max(rates)) == 4
    assert settings.warmup_epochs == 0.5


def test_average_warms_up_and_follows_the_weights() -> None:
    assert [round(ema_decay(n, 0.9), 3) for n in (0, 1, 10, 1000)] == [0.1, 0.182, 0.55, 0.9]
    model = nn.Linear(1, 1)
    average = average_weights(model, 0.9)
    expected = 0.0
    for update in range(30):
        with torch.no_grad():
            model.weight.fill_(float(update))
        average.update_parameters(model)
        decay = 0.0 if update == 0 else ema_decay(update, 0.9)
        expected = decay * expected + (1 - decay) * update
    assert average.module.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)
