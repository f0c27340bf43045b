"""Classifiers of timm and torchvision behind our door."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from torchvision.ops import StochasticDepth

import convnext
from convnext import create_model
from convnext.cli import main
from convnext.config import ModelSettings
from convnext.errors import SettingsError, UserError
from convnext.models import libraries
from convnext.models.registry import check_image_size, find, list_models, resolve


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:shufflenet_v2_x0_5"])
def test_a_librarys_model_is_trained_kept_and_used(
    name: str, tmp_path: Path, digits_images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["digits", "--model.name", name, "--epochs", "1", "--output", str(tmp_path), "--name", "one"]
    assert main(["train", *args]) == 0
    trained = capfd.readouterr()
    assert f"{name}, in_channels 1" in trained.err
    assert main(["evaluate", str(tmp_path / "one")]) == 0
    image = next(path for path in sorted(digits_images.rglob("*")) if path.is_file())
    assert main(["predict", str(tmp_path / "one"), str(image)]) == 0
    assert main(["inspect", str(tmp_path / "one")]) == 0
    assert f"model: {name}, in_channels 1" in capfd.readouterr().out
    weights = str(tmp_path / "one" / "checkpoints" / "last" / "model.safetensors")
    stored = create_model(name, 10, in_channels=1, weights=weights).eval()
    predictor = convnext.Predictor.load(tmp_path / "one")
    pixels = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(stored(pixels), predictor.model(pixels))


def test_logits_are_timms() -> None:
    theirs = timm.create_model("resnet10t", num_classes=5).eval()
    ours = create_model("timm:resnet10t", 5).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(pixels), theirs(pixels))


@pytest.mark.parametrize(
    ("name", "has_depth"),
    [
        ("timm:resnet10t", True),
        ("timm:vgg11", False),
        ("torchvision:swin_t", True),
        ("torchvision:efficientnet_b0", True),
        ("torchvision:regnet_y_400mf", False),
        ("torchvision:googlenet", False),
        ("torchvision:densenet121", False),
    ],
)
def test_channels_and_stochastic_depth(name: str, has_depth: bool) -> None:
    assert find(name).defaults.keys() == {"in_channels", "stochastic_depth"} if has_depth else {"in_channels"}
    with torch.device("meta"):
        model = create_model(name, 6, in_channels=2)
        assert model(torch.empty(2, 2, 224, 224)).shape == (2, 6)
    recipes_own = ModelSettings(name=name, stochastic_depth=0.2, depths=(1, 1))
    assert resolve(recipes_own).stochastic_depth == (0.2 if has_depth else 0.0)
    if not has_depth:
        with pytest.raises(SettingsError, match=r"model\.stochastic_depth: .* has no such setting"):
            create_model(name, stochastic_depth=0.2)


def test_a_library_that_there_is_not_has_no_models() -> None:
    for name in ("tim", "keras"):
        with pytest.raises(SettingsError, match=f"no library is called '{name}': (did you mean timm|known: timm, )"):
            list_models(name)  # type: ignore[arg-type]


def test_stochastic_depth_of_torchvision_rises_to_its_setting() -> None:
    with torch.device("meta"):
        modules = create_model("torchvision:convnext_tiny", stochastic_depth=0.3).modules()
    rates = [module.p for module in modules if isinstance(module, StochasticDepth)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1], len(rates)) == (0, 0.3, 18)


def test_images_that_a_model_does_not_take_are_refused() -> None:
    check_image_size(ModelSettings(name="timm:resnet10t"), 8)
    check_image_size(ModelSettings(name="timm:vit_tiny_patch16_224"), 224)
    for name in ("timm:vit_tiny_patch16_224", "torchvision:vit_b_16", "torchvision:alexnet"):
        with pytest.raises(SettingsError, match=rf"{name} does not take images of 8 px \(.*\): change data.image_size"):
            check_image_size(ModelSettings(name=name), 8)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(SettingsError, match=r"timm has no model 'resnet10q': did you mean .*resnet10t"):
        create_model("timm:resnet10q")
    with pytest.raises(SettingsError, match="torchvision has no model 'zzzz': `convnext models --library torchv"):
        create_model("torchvision:zzzz")
    with pytest.raises(SettingsError, match=r"no model is called 'keras:a'"):
        create_model("keras:a")
    assert "timm:resnet10t" in convnext.list_models("timm")
    assert "torchvision:vit_b_16" in convnext.list_models("torchvision")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    libraries.builder.cache_clear()
    with pytest.raises(UserError, match=r"models timm:NAME need timm, which is not installed: pip install timm"):
        create_model("timm:resnet10t")
