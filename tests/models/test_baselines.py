"""The baselines are torchvision's, and their stems fit small images."""

import pytest
import torch
import torchvision

from convnext import create_model
from convnext.config import ModelSettings
from convnext.errors import SettingsError
from convnext.models.registry import resolve


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "swin_t"])
def test_standard_baselines_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    ours, theirs = create_model(name), getattr(torchvision.models, name)()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "swin_t"])
@pytest.mark.parametrize(("patch_size", "size", "channels"), [(1, 32, 3), (2, 64, 1), (4, 64, 1)])
def test_stems_for_small_images(name: str, patch_size: int, size: int, channels: int) -> None:
    model = create_model(name, 5, patch_size=patch_size, in_channels=channels)
    maps = []
    last = model.get_submodule("features" if name == "swin_t" else "layer4")
    last.register_forward_hook(lambda _module, _args, output: maps.append(output.shape))
    assert model(torch.randn(2, channels, size, size)).shape == (2, 5)
    height = maps[0][1 if name == "swin_t" else 2]  # Swin keeps channels last
    assert height == size // (8 * patch_size)


def test_a_baseline_keeps_only_its_own_settings() -> None:
    settings = ModelSettings(name="resnet18", depths=(1, 1), dims=(8, 16), layer_scale=1.0, init="torch", patch_size=2)
    assert resolve(settings, 1) == ModelSettings(name="resnet18", patch_size=2, in_channels=1)


def test_other_patch_sizes_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"model\.patch_size: swin_t has stems for 1, 2 and 4, got 3"):
        create_model("swin_t", patch_size=3)
    for dims in ((48, 96), (64, 64)):
        with pytest.raises(SettingsError, match=r"model\.dims: swin_t has a multiple of 32, doubled"):
            create_model("swin_t", depths=(1, 1), dims=dims)
