"""Groups, schedule and moving average."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Muon

from convnext import create_model, recipe
from convnext.errors import SettingsError
from convnext.training.optimizers import (
    MatrixMuon,
    WeightAverage,
    begin_momentum,
    configure,
    ema_decay,
    make_optimizers,
    set_learning_rate,
)


def test_norms_biases_and_layer_scale_are_not_decayed() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (optimizer,) = make_optimizers(model, recipe("digits").optimizer)
    decayed, spared = sorted(optimizer.param_groups, key=lambda group: -group["weight_decay"])
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
    rates = [settings.learning_rate(step, steps_per_epoch=5) for step in range(51)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[30] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[50] == pytest.approx(1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_short_run_has_a_short_warm_up() -> None:
    settings = recipe("digits", epochs=2, **{"optimizer.warmup_epochs": 20})
    rates = [settings.learning_rate(step, steps_per_epoch=10) for step in range(20)]
    assert rates.index(max(rates)) == 4
    assert settings.warmup_epochs == 0.5


def test_average_warms_up_and_follows_the_weights() -> None:
    assert [round(ema_decay(n, 0.9), 3) for n in (0, 1, 10, 1000)] == [0.1, 0.182, 0.55, 0.9]
    model = nn.Linear(1, 1)
    average = WeightAverage(model, 0.9)
    expected = 0.0
    for update in range(30):
        with torch.no_grad():
            model.weight.fill_(float(update))
        average.update_parameters(model)
        decay = 0.0 if update == 0 else ema_decay(update, 0.9)
        expected = decay * expected + (1 - decay) * update
    assert average.module.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_other_schedules(schedule: str) -> None:
    changes = {
        "optimizer.lr": 1e-3,
        "optimizer.warmup_epochs": 2,
        "optimizer.min_lr": 0,
        "optimizer.schedule": schedule,
    }
    settings = recipe("digits", epochs=10, **changes)
    rates = [settings.learning_rate(step, steps_per_epoch=5) for step in (9, 10, 30, 49)]
    assert rates == pytest.approx({"linear": [1e-3, 1e-3, 5e-4, 2.5e-5], "constant": [1e-3] * 4}[schedule])


def test_layer_decay_groups_as_the_authors_do() -> None:
    with torch.device("meta"):
        model = create_model("convnext_small")
    settings = recipe("digits").optimizer.replace(layer_decay=0.8)
    (optimizer,) = make_optimizers(model, settings)
    set_learning_rate([optimizer], 1.0)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    # The authors divide the network into 12 groups below the head: the stem is the first, the last stage the twelfth.
    expected = {
        "downsample_layers.0.0.weight": 13,
        "stages.0.2.dwconv.weight": 12,
        "downsample_layers.1.1.weight": 11,
        "downsample_layers.2.1.weight": 10,
        "stages.2.2.gamma": 10,
        "stages.2.3.gamma": 9,
        "stages.2.26.pwconv1.weight": 2,
        "stages.3.0.norm.bias": 1,
        "norm.weight": 0,
        "head.weight": 0,
    }
    for name, parameter in model.named_parameters():
        if name in expected:
            assert rates[id(parameter)] == pytest.approx(0.8 ** expected[name]), name


def test_the_biases_of_norms_have_a_learning_rate_of_their_own() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16), pool=True)
    settings = recipe("digits").optimizer.replace(norm_bias_lr_scale=8.0, layer_decay=0.5, name="muon")
    rates: dict[int, float] = {}
    optimizers = make_optimizers(model, settings)
    set_learning_rate(optimizers, 1.0)
    for optimizer in optimizers:
        rates |= {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    plain = make_optimizers(model, settings.replace(norm_bias_lr_scale=1.0))
    set_learning_rate(plain, 1.0)
    for optimizer in plain:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rates[id(parameter)] /= group["lr"]
    biases = {"downsample_layers.0.1.bias", "downsample_layers.1.1.bias", "norm.bias"}
    biases |= {"stages.0.0.norm.bias", "stages.1.0.norm.bias"}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(8 if name in biases else 1), name
    with pytest.raises(
        SettingsError, match="norm_bias_lr_scale: Linear has no norms with biases to train: leave it out"
    ):
        make_optimizers(nn.Linear(2, 2), settings.replace(layer_decay=1.0))


def test_layer_decay_needs_a_convnext() -> None:
    settings = recipe("digits").optimizer.replace(layer_decay=0.8)
    with pytest.raises(SettingsError, match="layer_decay is for ConvNeXt, not ResNet"):
        make_optimizers(create_model("resnet18"), settings)


def test_muon_takes_the_linear_layers_of_the_blocks() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16))
    muon, adamw = make_optimizers(model, recipe("digits").optimizer.replace(name="muon"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    assert chosen == {f"stages.{stage}.0.pwconv{number}.weight" for stage in (0, 1) for number in (1, 2)}
    rest = {names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]}
    assert chosen | rest == set(names.values())
    assert not chosen & rest


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_muon_sees_a_filter_as_a_row(memory_format: torch.memory_format) -> None:
    """A column's number does not matter to it, so that both memory formats give the same filters."""
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=memory_format))
    matrix = nn.Parameter(filters.detach().flatten(1).clone())
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    ours, plain = MatrixMuon([{"params": [filters]}], **options), Muon([matrix], **options)
    begin_momentum([ours])
    for step in range(3):
        gradient = torch.randn(6, 4, 3, 3)  # its memory format is another one than that of the filters, or the same
        filters.grad, matrix.grad = gradient, gradient.flatten(1).clone()
        for optimizer in (ours, plain):
            optimizer.step()  # type: ignore[no-untyped-call]
        # Newton-Schulz iterations are in bfloat16, so that the order of the sums shows.
        torch.testing.assert_close(filters.flatten(1), matrix, rtol=0, atol=2e-2 * (step + 1))
    assert ours.state[filters]["momentum_buffer"].shape == filters.shape


def test_muon_of_matrices_is_torchs_to_the_bit() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(weight) for weight in torch.randn(6, 4).expand(2, 6, 4).clone())
    optimizers = MatrixMuon([{"params": [ours]}], lr=0.1), Muon([theirs], lr=0.1)
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(6, 4)
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[no-untyped-call]
    assert torch.equal(ours, theirs)


def test_muon_takes_dense_convolutions_where_it_is_asked_to() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16), pool=True, whitening=True)
    muon, adamw = make_optimizers(model, recipe("digits").optimizer.replace(name="muon", muon_filters=True))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen, rest = ({names[id(p)] for group in o.param_groups for p in group["params"]} for o in (muon, adamw))
    assert {"downsample_layers.0.0.weight", "downsample_layers.1.0.weight", "stages.0.0.pwconv1.weight"} <= chosen
    assert {"stages.0.0.dwconv.weight", "whitening.bias", "head.weight"} <= rest
    assert chosen | rest == set(names.values()) - {"whitening.weight"}
    make_optimizers(create_model("resnet18"), recipe("digits").optimizer.replace(name="muon", muon_filters=True))


def test_muons_relative_learning_rate_is_what_a_step_turns_the_weights_by() -> None:
    torch.manual_seed(0)
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(16, 32), pool=True)
    settings = recipe("digits").optimizer.replace(
        name="muon", muon_filters=True, muon_relative_lr=0.1, lr=0.02, momentum=0.0
    )
    optimizers = make_optimizers(model, settings)
    muon = optimizers[0]
    assert all(group["weight_decay"] == 0 for group in muon.param_groups)
    weights = [p for group in muon.param_groups for p in group["params"]]
    before = [p.detach() * len(p) ** 0.5 / p.detach().norm() for p in weights]
    for p in weights:
        p.grad = torch.randn_like(p)
    begin_momentum(optimizers)
    set_learning_rate(optimizers, 0.01)  # half of lr: the middle of a decay
    muon.step()
    turned = [((p.detach() - old).norm() / old.norm()).item() for p, old in zip(weights, before, strict=True)]
    # Three iterations leave singular values between 0.2 and 1.2.
    assert all(0.02 < value < 0.06 for value in turned), turned
    weights[0].detach().zero_()
    muon.step()
    assert weights[0].isfinite().all()


def test_muon_needs_linear_layers() -> None:
    with pytest.raises(
        SettingsError, match="muon is for linear layers, and ResNet has none of them to train: use adamw"
    ):
        make_optimizers(create_model("resnet18"), recipe("digits").optimizer.replace(name="muon"))
    with pytest.raises(SettingsError, match="EfficientNet has none of them"):  # its classifier is called classifier
        make_optimizers(create_model("timm:efficientnet_b0"), recipe("digits").optimizer.replace(name="muon"))


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "tiny-imagenet"])
@pytest.mark.parametrize("model", ["resnet18", "resnet50", "swin_t", "convnext_atto"])
def test_recipes_of_muon_have_an_optimizer_for_each_baseline(name: str, model: str) -> None:
    settings = recipe(name, model={"name": model})
    found = [type(optimizer).__name__ for optimizer in make_optimizers(create_model(model, 10), settings.optimizer)]
    assert found == (["MatrixMuon", "AdamW"] if model.startswith("convnext") else ["AdamW"])


def test_frozen_stages_and_their_limits() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16))
    configure(model, recipe("digits", freeze=1))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith(("downsample_layers.0", "stages.0"))
    }
    with pytest.raises(SettingsError, match="the model has 2 stages, got 3"):
        configure(model, recipe("digits", freeze=3))
    with pytest.raises(SettingsError, match="freeze is for ConvNeXt, not ResNet"):
        configure(create_model("resnet18"), recipe("digits", freeze=1))
