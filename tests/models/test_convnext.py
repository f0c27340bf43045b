"""The architecture against the paper's numbers, and against two independent implementations."""

import re

import pytest
import timm
import torch
import torchvision
from torch import nn

from convnext import create_model
from convnext.config import ModelSettings
from convnext.errors import SettingsError
from convnext.models.convnext import Block, ConvNeXt, StochasticDepth
from convnext.models.registry import build, check_image_size, resolve
from convnext.models.variants import VARIANTS


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # the authors' release, 1000 classes
        ("convnext_tiny", 28_589_128),
        ("convnext_small", 50_223_688),
        ("convnext_base", 88_591_464),
        ("convnext_large", 197_767_336),
        ("convnext_xlarge", 350_196_968),
    ],
)
def test_parameters_are_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def randomized_tiny() -> ConvNeXt:
    """ConvNeXt-T with every parameter away from its initial zero or one, so that each of them matters."""
    torch.manual_seed(0)
    model = create_model("convnext_tiny", layer_scale=0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "pwconv" in name:
                parameter.mul_(2)
    return model.eval()


def assert_same_logits(ours: nn.Module, theirs: nn.Module) -> None:
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, actual = theirs.eval()(images), ours(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_logits_equal_timm() -> None:
    ours = randomized_tiny()
    theirs = timm.create_model("convnext_tiny")
    renamed = {}
    for name, tensor in ours.state_dict().items():
        name = re.sub(r"^downsample_layers\.0\.", "stem.", name)
        name = re.sub(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample.", name)
        name = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        name = name.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
        name = re.sub(r"^norm\.", "head.norm.", re.sub(r"^head\.", "head.fc.", name))
        renamed[name] = tensor
    theirs.load_state_dict(renamed)
    assert_same_logits(ours, theirs)


def test_logits_equal_torchvision() -> None:
    ours = randomized_tiny()
    theirs = torchvision.models.convnext_tiny()
    inner = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}
    renamed = {}
    for name, tensor in ours.state_dict().items():
        fields = name.split(".")
        if fields[0] == "downsample_layers":
            fields = ["features", str(2 * int(fields[1])), *fields[2:]]
        elif fields[0] == "stages":
            fields = ["features", str(2 * int(fields[1]) + 1), fields[2], *fields[3:]]
            if fields[3] == "gamma":
                fields[3], tensor = "layer_scale", tensor[:, None, None]
            else:
                fields[3] = inner[fields[3]]
        else:
            fields = ["classifier", {"norm": "0", "head": "2"}[fields[0]], *fields[1:]]
        renamed[".".join(fields)] = tensor
    theirs.load_state_dict(renamed)
    assert_same_logits(ours, theirs)


def test_parameter_names_are_the_official_ones() -> None:
    with torch.device("meta"):
        names = set(create_model("convnext_tiny").state_dict())
    block = {"dwconv.weight", "dwconv.bias", "norm.weight", "norm.bias", "pwconv1.weight", "pwconv1.bias"}
    block |= {"pwconv2.weight", "pwconv2.bias", "gamma"}
    assert {f"stages.2.8.{name}" for name in block} <= names
    assert {"downsample_layers.0.0.weight", "downsample_layers.3.1.bias", "norm.weight", "head.bias"} <= names
    assert len(names) == 18 * 9 + 4 * 4 + 2 + 2


@pytest.mark.parametrize(("patch_size", "size"), [(1, 8), (2, 16), (4, 32)])
def test_feature_map_has_the_stride(patch_size: int, size: int) -> None:
    model = create_model("convnext_tiny", 7, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), patch_size=patch_size)
    assert model.stride == patch_size * 8
    images = torch.randn(2, 3, 3 * size, 2 * size)
    assert model.forward_features(images).shape == (2, 32, 3, 2)
    assert model(images).shape == (2, 7)


def test_free_choices_reach_the_model() -> None:
    model = create_model(
        "convnext_tiny", 5, depths=(1, 2), dims=(8, 16), kernel_size=3, mlp_ratio=2, in_channels=1, layer_scale=None,
        patch_size=2, stochastic_depth=0.3,
    )  # fmt: skip
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [block.dwconv.kernel_size for block in blocks] == [(3, 3)] * 3
    assert [block.pwconv1.out_features for block in blocks] == [16, 32, 32]
    assert all(block.gamma is None for block in blocks)
    assert [block.drop_path.p for block in blocks] == pytest.approx([0.0, 0.15, 0.3])
    assert model(torch.randn(3, 1, 16, 16)).shape == (3, 5)


@pytest.mark.parametrize("shape", [(64, 3, 5, 7), (64, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stochastic_depth_is_torchvisions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, own = torch.randn(shape, dtype=dtype), StochasticDepth(0.3)
    results = []
    for drop in (own, torchvision.ops.StochasticDepth(0.3, "row")):
        torch.manual_seed(0)
        results.append(drop(x))
    assert torch.equal(*results)
    assert 0 < int((results[0].flatten(1) == 0).all(1).sum()) < len(x)
    assert torch.equal(own.eval()(x), x)
    assert torch.equal(StochasticDepth(0.0)(x), x)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    paper = create_model("convnext_tiny", 10, head_init_scale=0.001).state_dict()
    assert paper["stages.2.0.pwconv1.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert paper["stages.2.0.pwconv1.bias"].abs().max() == 0
    assert paper["stages.0.0.gamma"].eq(1e-6).all()
    assert paper["head.weight"].std().item() == pytest.approx(0.02 * 0.001, rel=0.1)
    short = create_model("convnext_tiny", 10, init="torch").state_dict()
    assert short["stages.0.0.pwconv1.weight"].std().item() == pytest.approx((1 / (3 * 96)) ** 0.5, rel=0.05)


def test_memory_format_does_not_change_the_result() -> None:
    model = randomized_tiny()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        actual = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16), patch_size=2)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_unknown_names_and_impossible_shapes_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"convnext_tny.*did you mean convnext_tiny"):
        create_model("convnext_tny")
    with pytest.raises(SettingsError, match="one entry a stage"):
        create_model("convnext_tiny", depths=(1, 2, 3))
    with pytest.raises(SettingsError, match=r"model\.kernel_size: must be odd, got 4"):
        create_model("convnext_tiny", kernel_size=4)
    with pytest.raises(SettingsError, match=r"model\.weights: nobody released"):
        create_model("roadmap", weights="in1k")
    with pytest.raises(SettingsError, match=r"depth: did you mean depths"):
        create_model("convnext_tiny", depth=(1, 1, 1, 1))
    with pytest.raises(SettingsError, match=r"images of 16 px are too small.*need 32 px"):
        check_image_size(resolve(ModelSettings()), 16)
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16))
    with pytest.raises(ValueError, match="smaller than the model takes: 8"):
        model(torch.randn(1, 3, 4, 32))


@pytest.mark.parametrize("depths", [(1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("whitening", [False, True])
def test_the_smallest_images_are_known_before_the_model_is_built(
    depths: tuple[int, ...], patch_size: int, whitening: bool
) -> None:
    settings = resolve(
        ModelSettings(depths=depths, dims=(8, 16, 32)[: len(depths)], patch_size=patch_size, whitening=whitening)
    )
    model = build(settings, 2).eval()
    assert isinstance(model, ConvNeXt)
    smallest = model.smallest
    check_image_size(settings, smallest)
    assert model(torch.zeros(1, 3, smallest, smallest)).shape == (1, 2)
    with pytest.raises(SettingsError, match=f"which need {smallest} px"):
        check_image_size(settings, smallest - 1)


def test_the_table_lists_what_can_be_built() -> None:
    for name, variant in VARIANTS.items():
        settings = resolve(ModelSettings(name=name))
        assert settings.depths == variant.depths
        assert settings.dims == variant.dims
