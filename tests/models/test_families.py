"""What users do to a model besides training it, on one small member of every family."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convnext import create_model

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: create_model("convnext_tiny", 5, depths=(1, 2), dims=(16, 32), patch_size=2, layer_scale=0.5),
    "convnextv2": lambda: create_model("convnextv2_atto", 5, depths=(1, 2), dims=(16, 32), patch_size=2),
    "isotropic": lambda: create_model("convnext_isotropic_small", 5, depths=(2,), dims=(16,), patch_size=4),
    "roadmap": lambda: create_model("roadmap", 5, step=8, depths=(1, 1), dims=(24, 48), patch_size=2),
    "resnet": lambda: create_model("resnet18", 5, patch_size=1),
    "swin": lambda: create_model("swin_t", 5, patch_size=2),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_trace_and_channels_last(model: nn.Module, images: Tensor) -> None:
    expected = model(images)
    traced = torch.jit.trace(model, images)  # type: ignore[no-untyped-call]
    close(traced(images), expected)
    close(model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)), expected)


def test_export(model: nn.Module, images: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        more = torch.cat([images, images, images])
        close(exported.module()(more), model(more))


@torch.no_grad()
def test_compile_has_no_graph_breaks(model: nn.Module, images: Tensor) -> None:
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    close(compiled(images), model(images))


@torch.no_grad()
def test_compile_with_inductor(images: Tensor) -> None:
    model = FAMILIES["convnext"]().eval()
    close(torch.compile(model, fullgraph=True)(images), model(images))


@torch.inference_mode()
def test_copies(model: nn.Module, images: Tensor) -> None:
    expected = model(images)
    assert torch.equal(copy.deepcopy(model)(images), expected)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(images), expected)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    expected = model(images)
    actual = model.to(dtype)(images.to(dtype))
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() < 0.05 * expected.norm()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    stages=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 12)), min_size=1, max_size=4),
    patch_size=st.sampled_from([1, 2, 4]),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    mlp_ratio=st.integers(1, 5),
    in_channels=st.integers(1, 5),
    num_classes=st.integers(1, 7),
    layer_scale=st.sampled_from([None, 1e-6, 1.0]),
    grn=st.booleans(),
    stem_norm=st.booleans(),
    shrinking=st.sampled_from(["patches", "overlap", "pool"]),
    whitening=st.booleans(),
    init=st.sampled_from(["paper", "torch"]),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_any_valid_configuration_trains(
    stages: list[tuple[int, int]],
    patch_size: int,
    kernel_size: int,
    mlp_ratio: int,
    in_channels: int,
    num_classes: int,
    layer_scale: float | None,
    grn: bool,
    stem_norm: bool,
    shrinking: str,
    whitening: bool,
    init: str,
    extra: tuple[int, int],
) -> None:
    depths, widths = zip(*stages, strict=True)
    model = create_model(
        "convnext_tiny",
        num_classes,
        depths=depths,
        dims=tuple(2 * width for width in widths),
        patch_size=patch_size,
        kernel_size=kernel_size,
        mlp_ratio=mlp_ratio,
        in_channels=in_channels,
        layer_scale=layer_scale,
        grn=grn,
        stem_norm=stem_norm,
        overlap=shrinking == "overlap",
        pool=shrinking == "pool",
        whitening=whitening,
        init=init,
    )
    height, width = (model.smallest + amount for amount in extra)
    logits = model(torch.randn(2, in_channels, height, width))
    assert logits.shape == (2, num_classes)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name == "whitening.weight":  # it is computed from the images
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# Torch's own files and the package's version are read before the hook; Python's sources are not counted.
IMPORTS_ALONE = """
import sys
sys.modules["fcntl"] = None
import torch, torchvision, convnext.config, convnext.weights.catalogue

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from convnext.models import backbone, baselines, convnext, registry, roadmap, summary
opened = [path for path in opened if not path.endswith((".py", ".pyc"))]
assert not opened, opened
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("convnext.")}
assert not rooms & {"kernels", "storage", "data", "training"}, rooms
for name in ("convnext_tiny", "roadmap"):
    model = registry.create_model(name, 3, depths=(1, 1), dims=(24, 48), patch_size=2)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
print("trained")
"""


def test_importing_models_opens_no_file_and_needs_no_lock() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORTS_ALONE], capture_output=True, text=True, check=False)
    assert run.stdout == "trained\n", run.stderr
