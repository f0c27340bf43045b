"""Converted weights against timm, torchvision and transformers themselves, and there and back bit by bit."""

import itertools
import re
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from convnext import create_model
from convnext.errors import CheckpointError
from convnext.models.convnext import ConvNeXt
from convnext.weights.layouts import LAYOUTS, convert, detect_layout, not_built

V1_LAYOUTS = ("official", "torchvision", "timm", "transformers")
V2_LAYOUTS = ("official", "timm", "transformers")


def on_meta(name: str, **settings: Any) -> ConvNeXt:
    """Our model without memory; timm alone has a V2-S."""
    if name == "convnextv2_small":
        name, settings = "convnextv2_tiny", {"depths": (3, 3, 27, 3), **settings}
    with torch.device("meta"):
        model = create_model(name, **settings)
    assert isinstance(model, ConvNeXt)
    return model


def randomized(model: nn.Module) -> dict[str, Tensor]:
    """A state dict in which every parameter matters, and nothing explodes."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, tensor: Tensor) -> Tensor:
        noise: Tensor = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1 and "grn" not in name:
            return noise.mul_(tensor[0].numel() ** -0.5)
        base = 0.4 if re.search(r"\d\.gamma$", name) else float("norm" in name and name.endswith("weight"))
        return noise.mul_(0.2).add_(base)

    return {name: draw(name, tensor) for name, tensor in model.state_dict().items()}


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def difference(ours: ConvNeXt, theirs: nn.Module, layout: str) -> float:
    """Greatest difference of the logits, with the same random weights on both sides."""
    weights = randomized(ours)
    ours.load_state_dict(weights, assign=True)
    theirs.load_state_dict(convert(weights, layout, "official"), assign=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.eval()(images)
        logits = ours.eval()(images)
    expected = getattr(expected, "logits", expected)
    assert expected.std() > 0.05
    return float((logits - expected).abs().max())


def transformers_model(ours: ConvNeXt, version: int, num_classes: int = 1000) -> nn.Module:
    kind = "ConvNext" if version == 1 else "ConvNextV2"
    depths = [len(stage) for stage in ours.stages]  # type: ignore[arg-type]
    settings = {"hidden_sizes": list(ours.dims), "depths": depths, "num_labels": num_classes}
    config = getattr(transformers, f"{kind}Config")(**settings)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config)
    return model


@pytest.mark.parametrize(
    "name",
    [f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small")]
    + [f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small")]
    + [pytest.param(f"convnext_{size}", marks=pytest.mark.slow) for size in ("base", "large", "xlarge")]
    + [pytest.param(f"convnextv2_{size}", marks=pytest.mark.slow) for size in ("base", "large", "huge")],
)
def test_logits_equal_timm(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    assert difference(on_meta(name), theirs, "timm") < 1e-4


@pytest.mark.parametrize(
    "name",
    ["convnext_tiny", "convnext_small"]
    + [pytest.param(f"convnext_{size}", marks=pytest.mark.slow) for size in ("base", "large")],
)
def test_logits_equal_torchvision(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    assert difference(on_meta(name), theirs, "torchvision") < 1e-4


@pytest.mark.parametrize(("name", "version"), [("convnext_tiny", 1), ("convnextv2_tiny", 2)])
def test_logits_equal_transformers(name: str, version: int) -> None:
    ours = on_meta(name)
    assert difference(ours, transformers_model(ours, version), "transformers") < 1e-4


@pytest.mark.parametrize(
    "name",
    ["convnext_base", "convnext_large", "convnext_xlarge"] + [f"convnextv2_{s}" for s in ("base", "large", "huge")],
)
def test_large_variants_have_the_peers_names_and_shapes(name: str) -> None:
    ours = on_meta(name)
    with torch.device("meta"):
        peers = {"timm": timm.create_model(name)}
        if name in ("convnext_base", "convnext_large"):
            peers["torchvision"] = torchvision.models.get_model(name)
    peers["transformers"] = transformers_model(ours, 2 if "v2" in name else 1)
    for layout, peer in peers.items():
        theirs = peer.state_dict()
        assert detect_layout(theirs) == layout
        assert shapes(convert(ours.state_dict(), layout)) == shapes(theirs)
        assert shapes(convert(theirs, "official")) == shapes(ours.state_dict())


ROUND_TRIPS = [
    (name, *pair)
    for name, layouts in {
        "convnext_atto": V1_LAYOUTS,
        "convnext_tiny": V1_LAYOUTS,
        "convnextv2_atto": V2_LAYOUTS,
        "convnextv2_tiny": V2_LAYOUTS,
        "convnext_isotropic_small": ("official", "isotropic"),
    }.items()
    for pair in itertools.product(layouts, repeat=2)
]


@cache
def shallow_weights(name: str) -> dict[str, Tensor]:
    return randomized(on_meta(name, depths=(3,) if "isotropic" in name else (1, 1, 2, 1), num_classes=5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("name", "first", "second"), ROUND_TRIPS)
def test_there_and_back_gives_the_same_bytes(name: str, first: str, second: str, dtype: torch.dtype) -> None:
    start = convert({key: tensor.to(dtype) for key, tensor in shallow_weights(name).items()}, first)
    there = convert(start, second)
    assert detect_layout(there) == second
    back = convert(there, first)
    assert list(back) == list(start)
    for key, tensor in start.items():
        assert (back[key].dtype, back[key].shape) == (dtype, tensor.shape)
        assert torch.equal(back[key], tensor)
        assert back[key].data_ptr() == tensor.data_ptr()  # views: nothing was computed


def test_each_layout_is_recognised_by_its_peer() -> None:
    with torch.device("meta"):
        tiny = create_model("convnext_tiny")
        assert detect_layout(tiny.state_dict()) == "official"
        assert detect_layout(create_model("convnextv2_atto").state_dict()) == "official"
        assert detect_layout(create_model("convnext_isotropic_small").state_dict()) == "official"
        assert detect_layout(torchvision.models.convnext_tiny().state_dict()) == "torchvision"
        assert detect_layout(timm.create_model("convnext_atto").state_dict()) == "timm"
        assert detect_layout(timm.create_model("convnextv2_atto", num_classes=0).state_dict()) == "timm"
    assert detect_layout(transformers_model(tiny, 1).state_dict()) == "transformers"
    assert detect_layout(["stem.weight", "blocks.0.dwconv.weight", "norm.bias"]) == "isotropic"
    assert set(LAYOUTS) == {*V1_LAYOUTS, "isotropic"}


def test_official_isotropic_names_load() -> None:
    depth, dim = 18, 384  # the authors' ConvNeXt-S (iso.)
    official = {"stem.weight": (dim, 3, 16, 16), "stem.bias": (dim,)}
    for block in range(depth):
        official |= {f"blocks.{block}.{name}": shape for name, shape in (
            ("dwconv.weight", (dim, 1, 7, 7)), ("dwconv.bias", (dim,)), ("norm.weight", (dim,)), ("norm.bias", (dim,)),
            ("pwconv1.weight", (4 * dim, dim)), ("pwconv1.bias", (4 * dim,)),
            ("pwconv2.weight", (dim, 4 * dim)), ("pwconv2.bias", (dim,)),
        )}  # fmt: skip
    official |= {"norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (1000, dim), "head.bias": (1000,)}
    weights = {name: torch.empty(shape, device="meta") for name, shape in official.items()}
    ours = convert(weights, "official")
    on_meta("convnext_isotropic_small").load_state_dict(ours, strict=True, assign=True)
    assert shapes(convert(ours, "isotropic")) == shapes(weights)


def test_a_missing_classifier_is_no_obstacle() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("convnextv2_nano", num_classes=0)
    ours = on_meta("convnextv2_nano", num_classes=0)
    assert shapes(convert(ours.state_dict(), "timm")) == shapes(theirs.state_dict())
    on_meta("convnextv2_nano", num_classes=0).load_state_dict(convert(theirs.state_dict(), "official"), assign=True)


def test_models_that_a_layout_cannot_hold() -> None:
    v2 = on_meta("convnextv2_atto").state_dict()
    with pytest.raises(
        CheckpointError, match=r"torchvision cannot hold this ConvNeXt V2: .*grn.*timm or transformers$"
    ):
        convert(v2, "torchvision")
    isotropic = on_meta("convnext_isotropic_small").state_dict()
    for layout in ("torchvision", "timm", "transformers"):
        with pytest.raises(
            CheckpointError, match=rf"{layout} cannot hold .*stem without a norm.*official or isotropic$"
        ):
            convert(isotropic, layout)
    overlapping = on_meta("convnext_atto", overlap=True).state_dict()
    for layout in ("torchvision", "timm", "transformers"):
        with pytest.raises(CheckpointError, match=rf"{layout} cannot hold .*over their patches' edges.*use official$"):
            convert(overlapping, layout)
    pooled = on_meta("convnext_atto", pool=True).state_dict()
    for layout in ("torchvision", "timm", "transformers"):
        with pytest.raises(
            CheckpointError, match=rf"{layout} cannot hold .*convolutions before pooling.*use official$"
        ):
            convert(pooled, layout)
    with pytest.raises(
        CheckpointError, match=r"isotropic cannot hold .*downsample_layers\.0\.1\.weight, .* and \d+ more"
    ):
        convert(on_meta("convnext_tiny").state_dict(), "isotropic")


@pytest.mark.parametrize("name", ["convnext_tiny_hnf", "convnext_atto_ols", "convnext_large_mlp"])
def test_timm_variants_of_another_architecture_are_refused(name: str) -> None:
    with torch.device("meta"):
        weights = timm.create_model(name).state_dict()
    with pytest.raises(CheckpointError, match=r"no known layout .*\(timm but for these\); known layouts: official, "):
        convert(weights, "official")


@pytest.mark.parametrize("name", ["convnext_atto_rms", "convnext_zepto_rms"])
def test_norms_without_a_bias_are_refused(name: str) -> None:
    with torch.device("meta"):
        weights = timm.create_model(name).state_dict()
    for layout in LAYOUTS:
        with pytest.raises(CheckpointError, match=r"no layout holds norms without a bias, such as RMSNorm \(down"):
            convert(weights, layout)


def test_what_a_library_does_not_build_is_named() -> None:
    assert not any(not_built(on_meta("convnext_atto").state_dict(), layout) for layout in LAYOUTS)
    settings = {"depths": (1, 1, 1), "dims": (8, 16, 24), "kernel_size": 3, "mlp_ratio": 2, "patch_size": 2}
    odd = {name: x for name, x in on_meta("convnext_atto", **settings).state_dict().items() if ".gamma" not in name}
    kernels, ratio, stem = "kernels of 3 pixels", "an MLP ratio of 2", "a stem of 2 x 2 pixels"
    assert {layout: not_built(odd, layout) for layout in V1_LAYOUTS} == {
        "official": [],
        "torchvision": [kernels, ratio, stem, "blocks without layer scale"],
        "timm": ["3 stages", ratio, stem],
        "transformers": [kernels, ratio],
    }
    scaled = on_meta("convnextv2_atto", layer_scale=1e-6).state_dict()
    assert [not_built(scaled, layout) for layout in V2_LAYOUTS] == [[], [], ["layer scale beside GRN"]]


def test_unknown_names_and_layouts() -> None:
    weights = {f"layer{number}.weight": torch.zeros(1) for number in range(5)}
    known = "known layouts: official, isotropic, torchvision, timm, transformers$"
    with pytest.raises(CheckpointError, match=rf"layer0\.weight, layer1\.weight, layer2\.weight and 2 more; {known}"):
        convert(weights, "timm")
    with pytest.raises(CheckpointError, match=known):
        detect_layout([])
    tiny = on_meta("convnext_tiny").state_dict()
    with pytest.raises(CheckpointError, match=r"no layout is called 'tim': did you mean timm"):
        convert(tiny, "tim")
    with pytest.raises(CheckpointError, match="no layout is called 'jax'"):
        convert(tiny, "timm", source="jax")
    with pytest.raises(CheckpointError, match=r"layout timm has no downsample_layers\.0\.0\.weight, "):
        convert(tiny, "official", source="timm")
    for stranger in ("stages.0.downsample.0.weight", "stages.00.blocks.0.gamma", "stages.0.blocks.0.gamma.weight"):
        with pytest.raises(CheckpointError, match=re.escape(stranger)):
            detect_layout([stranger])
    tiny["stages.0.0.pwconv1.weight"] = torch.zeros(384, 96, 3, 3)
    with pytest.raises(CheckpointError, match=r"stages\.0\.0\.pwconv1\.weight has shape \(384, 96, 3, 3\)"):
        convert(tiny, "timm")
