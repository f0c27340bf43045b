"""The roadmap against its two ends, and against the paper's multiply-adds."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from convnext import create_model
from convnext.errors import SettingsError
from convnext.models.roadmap import STEPS, Roadmap, Step
from convnext.models.summary import count_gmacs
from convnext.plots.roadmap import plot_roadmap

LAST = STEPS[-1].number
by_name = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)


def to_roadmap(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of either end under `Roadmap`'s names, for ``load_state_dict(..., strict=True)``.

    torchvision's ResNet numbers its layers (``layer1.0.conv2``), which stops making sense where the roadmap moves
    and removes them. So the names are ConvNeXt's by role, and only ResNet's are translated, with its 1x1 kernels
    reshaped to those of linear layers; a state dict of our ConvNeXt comes back as it is.
    """
    inside = {"conv1": "pwconv1", "bn1": "pwnorm1", "conv2": "dwconv", "bn2": "norm"}
    inside |= {"conv3": "pwconv2", "bn3": "pwnorm2", "downsample": "shortcut"}
    outside = {"conv1": "downsample_layers.0.0", "bn1": "downsample_layers.0.1", "fc": "head"}
    renamed = {}
    for name, tensor in state_dict.items():
        if block := re.fullmatch(r"layer(\d)\.(\d+)\.(\w+)\.(.+)", name):
            layer = inside[block[3]]
            name = f"stages.{int(block[1]) - 1}.{block[2]}.{layer}.{block[4]}"
            tensor = tensor.flatten(1) if layer.startswith("pwconv") else tensor
        else:
            layer, _, rest = name.partition(".")
            name = f"{outside.get(layer, layer)}.{rest}"
        renamed[name] = tensor
    return renamed


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def randomize(model: nn.Module) -> nn.Module:
    """Move every vector, and the statistics of batch norms, off zero and one, so that each of them matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise)
            elif tensor.ndim == 1:
                tensor.add_(0.4 * noise - 0.2)
    return model


def assert_same_logits(ours: nn.Module, theirs: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, actual = theirs.eval()(images), ours.eval()(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_first_step_is_resnet_50() -> None:
    torch.manual_seed(0)
    theirs = randomize(torchvision.models.resnet50())
    ours = Roadmap(0)
    ours.load_state_dict(to_roadmap(theirs.state_dict()))
    assert parameters(ours) == 25_557_032
    assert_same_logits(ours, theirs)


def test_last_step_is_convnext_tiny() -> None:
    torch.manual_seed(0)
    theirs = randomize(create_model("convnext_tiny", init="torch", layer_scale=0.5))
    ours = Roadmap(LAST)
    ours.load_state_dict(theirs.state_dict())
    assert to_roadmap(theirs.state_dict()).keys() == theirs.state_dict().keys()
    assert parameters(ours) == 28_589_128
    assert_same_logits(ours, theirs)


@by_name
def test_gflops_are_the_published_ones(step: Step) -> None:
    with torch.device("meta"):
        model = Roadmap(step)
    # Table 10 has two decimals; of its last row, 4.49, see the module's docstring.
    assert count_gmacs(model) == pytest.approx(step.gflops, abs=0.006 if step.number < LAST else 0.04)


def test_steps_are_in_the_papers_order() -> None:
    assert [step.number for step in STEPS] == list(range(16))
    assert [step.kernel_size for step in STEPS if not step.adopted] == [9, 11]
    assert STEPS[11].kernel_size == STEPS[8].kernel_size == 7


@pytest.mark.parametrize(("patch_size", "depths", "size"), [(1, (1, 2), 8), (2, (2, 1), 10), (4, (1,), 8)])
@by_name
def test_small_networks(step: Step, patch_size: int, depths: tuple[int, ...], size: int) -> None:
    torch.manual_seed(0)
    model = Roadmap(step.number, 10, 1, patch_size, depths, width=8, stochastic_depth=0.1)
    logits = model(torch.randn(8, 1, size, size))
    assert logits.shape == (8, 10)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_depths_width_and_patch_size() -> None:
    model = Roadmap(LAST, patch_size=2, depths=(1, 1, 2), width=16)
    assert (model.stride, model.num_features) == (8, 96)
    twin = create_model("convnext_tiny", patch_size=2, depths=(1, 1, 2), dims=(24, 48, 96))
    model.load_state_dict(twin.state_dict())
    assert (Roadmap(0, depths=(1,), width=16).num_features, Roadmap(4, depths=(1,), width=16).num_features) == (64, 96)


def test_counting_leaves_the_model_alone() -> None:
    model = Roadmap(3, num_classes=2, depths=(1, 1), width=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count_gmacs(model, 64) == pytest.approx(4 * count_gmacs(model, 32), rel=0.01)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_own_switches() -> None:
    model = Roadmap(replace(STEPS[LAST], kernel_size=3), depths=(1,), width=8)
    assert model.state_dict()["stages.0.0.dwconv.weight"].shape == (12, 1, 3, 3)


@pytest.mark.parametrize("number", [-1, 16, 99])
def test_unknown_steps_are_refused(number: int) -> None:
    with pytest.raises(SettingsError, match=rf"no step {number}: it goes from 0 .* to 15") as error:
        Roadmap(number)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"patch_size": 3}, "patch_size must be"), ({"depths": ()}, "depths must"), ({"width": 7}, "width must be even")],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Roadmap(0, **settings)


@pytest.mark.parametrize("measured", [None, [95.0 + step.number / 10 if step.number != 3 else None for step in STEPS]])
def test_plot(tmp_path: Path, measured: list[float | None] | None) -> None:
    path = tmp_path / "roadmap.png"
    plot_roadmap(STEPS, path, measured, "digits")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


def test_plot_refuses_lists_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one accuracy a row"):
        plot_roadmap(STEPS, tmp_path / "roadmap.png", [90.0])
