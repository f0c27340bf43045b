"""The kernels for training on CPU against PyTorch's operations in double precision."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from convnext import kernels
from convnext.kernels import build
from convnext.models.convnext import Block
from tests.support.kernel_cases import (
    block_and_input,
    errors,
    gradients,
    results,
    run_block,
    small_model,
    without_kernels,
)

AUTOCAST = {"fp32": False, "bf16": True}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and a library that is looked for again."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    build._find.cache_clear()
    yield tmp_path
    build._find.cache_clear()


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> None:
    if "fresh" in request.fixturenames:
        request.getfixturevalue("fresh")
    if build.library() is None:
        pytest.skip(kernels.describe())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((2, 5, 7, 9), 3),
        ((1, 19, 5, 4), 7),
        ((33, 64, 16, 16), 7),
        ((2, 33, 3, 11), 9),
        ((2, 16, 4, 4), 7),
        ((3, 8, 1, 1), 7),
        ((1, 1, 4, 6), 5),
        ((2, 24, 5, 6), 1),
        ((2, 24, 20, 25), 15),
    ],
)
def test_depthwise_convolution_and_its_gradients_are_exact(
    shape: tuple[int, int, int, int], side: int, precision: str
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(shape[1], 1, side, side), torch.randn(shape[1])
    if AUTOCAST[precision]:
        x = x.bfloat16()
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST[precision]):
        assert kernels.usable(x, nn.Conv2d(shape[1], shape[1], side, padding=side // 2, groups=shape[1]))
        y = kernels.depthwise_conv2d(x, weight, bias)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = results(F.conv2d(exact[0], exact[1], exact[2], padding=side // 2, groups=shape[1]), exact)
    found = errors(results(y, inputs), expected)
    assert y.dtype == x.dtype
    assert max(found[2:]) < 2e-6  # the sums are float32 in both
    assert max(found[:2]) < (4e-3 if AUTOCAST[precision] else 2e-6)


@pytest.mark.usefixtures("compiled")
def test_depthwise_convolution_does_not_depend_on_the_number_of_threads() -> None:
    conv = nn.Conv2d(40, 40, 7, padding=3, groups=40)
    x, before = torch.randn(21, 40, 9, 9, requires_grad=True), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = kernels.depthwise_conv2d(x, conv.weight, conv.bias)
            found.append(results(y, [x, conv.weight, conv.bias]))  # type: ignore[list-item]
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


# Channels that do not fill a vector; several chunks and a part of one, with the hidden layer computed again, then kept.
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("dim", "n", "side"), [(5, 2, 7), (64, 67, 8), (144, 3, 20), (24, 3, 1)])
@pytest.mark.parametrize("depth", [0.0, 0.4])
def test_a_block_computes_what_its_modules_do(dim: int, n: int, side: int, depth: float) -> None:
    block, x = block_and_input(dim, n, side, stochastic_depth=depth)
    expected = [t.double() for t in without_kernels(block, x)]
    found = run_block(block, x)
    assert all(a.dtype == torch.float32 for a in found)
    assert max(errors(found, expected)) < 1e-5


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("dim", "n", "side", "depth"), [(64, 67, 8, 0.0), (64, 67, 8, 0.4), (260, 11, 10, 0.0)])
def test_in_bfloat16_a_block_is_about_as_exact_as_its_modules(dim: int, n: int, side: int, depth: float) -> None:
    block, x = block_and_input(dim, n, side, stochastic_depth=depth)
    exact = [t.double() for t in without_kernels(block, x)]
    plain = errors(without_kernels(block, x, autocast=True), exact)
    for ours, theirs in zip(errors(run_block(block, x, autocast=True), exact), plain, strict=True):
        assert ours < 1.3 * theirs + 1e-3


@pytest.mark.usefixtures("compiled")
def test_a_block_in_bfloat16_without_autocast_trains() -> None:
    block, x = block_and_input(24, 3, 5)
    exact = [t.double() for t in without_kernels(block, x)]
    half, x_half = block.bfloat16(), x.detach().bfloat16().requires_grad_()
    found = run_block(half, x_half)
    assert all(t.dtype == torch.bfloat16 for t in found)
    assert max(errors(found, exact)) < 0.03


@pytest.mark.usefixtures("compiled")
def test_what_is_computed_is_the_same_each_time() -> None:
    block, x = block_and_input(64, 67, 8)
    assert all(map(torch.equal, run_block(block, x), run_block(block, x)))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_block_computes_the_same_in_any_number_of_threads(autocast: bool) -> None:
    block, x = block_and_input(64, 67, 8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run_block(block, x, autocast))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert max(errors(other, [t.double() for t in found[0]])) < (3e-3 if autocast else 1e-5)


@pytest.mark.usefixtures("compiled")
def test_other_memory_formats_give_the_same() -> None:
    block, x = block_and_input(24, 3, 6)
    plain = x.detach().contiguous().requires_grad_()
    for got, expected in zip(run_block(block, plain), run_block(block, x), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("compiled")
def test_nan_and_infinity_come_through() -> None:
    for value in (float("nan"), float("inf")):
        block, x = block_and_input(24, 1, 4)
        with torch.no_grad():
            x[0, 3, 1, 1] = value
        y, dx = run_block(block, x)[:2]
        assert not y.isfinite().all()
        assert not dx.isfinite().all()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dim", [1, 5, 24, 40])
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 0.0), (30.0, 1.0), (3000.0, 1.0)])
def test_a_mean_that_is_large_beside_the_deviation(dim: int, mean: float, std: float) -> None:
    torch.manual_seed(0)
    block = Block(dim, layer_scale=1.0)
    x = (mean + std * torch.randn(3, dim, 4, 4)).contiguous(memory_format=torch.channels_last).requires_grad_()
    layers = block.norm, block.pwconv1, block.pwconv2, block.gamma
    y = kernels.mlp(x, torch.zeros_like(x), *layers, None)
    hidden = block.pwconv2(block.act(block.pwconv1(block.norm(x.permute(0, 2, 3, 1)))))
    # Both round the mean; what is left of it is multiplied by 1 / sqrt(eps) where the deviation is nothing.
    torch.testing.assert_close(y, hidden.permute(0, 3, 1, 2), rtol=0, atol=1e-3 if std else 0.5)


@pytest.mark.usefixtures("compiled")
def test_the_default_type_of_tensors_does_not_matter() -> None:
    block, x = block_and_input(24, 2, 5)
    expected = run_block(block, x)
    torch.set_default_dtype(torch.float64)
    try:
        found = run_block(block, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("layer_scale", [1.0, None])
def test_weights_that_are_transposed_in_memory(layer_scale: float | None) -> None:
    block, x = block_and_input(24, 2, 5)
    block.gamma = None if layer_scale is None else block.gamma
    expected = run_block(block, x)
    for layer in (block.pwconv1, block.pwconv2):
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
        assert not layer.weight.is_contiguous()
    torch.testing.assert_close(run_block(block, x), expected)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 2, "padding": 6},
        {"padding": 3, "padding_mode": "circular"},
        {"padding": 3, "groups": 2},
        {"padding": 3, "stride": 2},
        {"kernel_size": 2, "padding": 1},
    ],
)
def test_other_convolutions_are_left_to_pytorch(options: dict[str, Any]) -> None:
    conv = nn.Conv2d(8, 8, **{"kernel_size": 7, "groups": 8} | options)
    assert not kernels.usable(torch.randn(1, 8, 6, 6), conv)
    assert not kernels.usable(torch.randn(8, 6, 6), nn.Conv2d(8, 8, 7, padding=3, groups=8))


@pytest.mark.usefixtures("compiled")
def test_norms_that_stay_float32_and_a_whole_epsilon() -> None:
    block, x = block_and_input(24, 2, 5)
    block.norm.eps = 1
    torch.testing.assert_close(run_block(block, x), without_kernels(block, x), rtol=1e-4, atol=1e-4)
    mixed, half = block.bfloat16(), x.detach().bfloat16().requires_grad_()
    mixed.norm.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixed(half), without_kernels(mixed, half, autocast=True)[0])


@pytest.mark.usefixtures("compiled")
def test_listeners_and_other_forwards_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = block_and_input(24, 2, 5)
    called = list[str]()
    hook = register_module_forward_hook(lambda module, *_: called.append(type(module).__name__))
    try:
        block(x)
    finally:
        hook.remove()
    assert called == [
        "DepthwiseConv2d",
        "LayerNorm",
        "Linear",
        "GELU",
        "Identity",
        "Linear",
        "StochasticDepth",
        "Block",
    ]
    monkeypatch.setattr(block.pwconv2, "forward", torch.zeros_like, raising=False)
    with pytest.raises(RuntimeError):  # four times too wide for the shortcut
        block(x)


@pytest.mark.usefixtures("compiled")
def test_sizes_that_do_not_fit_and_too_large_ones() -> None:
    block, x = block_and_input(24, 2, 5)
    with pytest.raises(ValueError, match=r"layers of 24, 24, 23 channels for an input of \(2, 24, 5, 5\)"):
        kernels.mlp(x, x, block.norm, block.pwconv1, nn.Linear(96, 23), None, None)
    with pytest.raises(MemoryError, match="mlp_forward"):
        build.compiled()("mlp_forward", 0, 0, 0, 1, 1, 1, 1 << 50, 1, 1e-6, *[None] * 9)
    with pytest.raises(MemoryError, match="depthwise_forward"):
        build.compiled()("depthwise_forward", None, 0, None, None, None, None, 0, 1, 1 << 30, 1 << 20, 1, 7)


@pytest.mark.usefixtures("compiled")
def test_replaced_modules_and_hooks_are_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    block, x = block_and_input(8, 2, 4)
    called: list[str] = []
    block.pwconv2.register_forward_hook(lambda *_: called.append("hook"))
    before = block(x)
    assert called == ["hook"]
    doubled = Doubled(32, 8)
    doubled.load_state_dict(block.pwconv2.state_dict())
    block.pwconv2 = doubled
    torch.testing.assert_close(block(x) - x, 2 * (before - x))
    block.act = nn.GELU("tanh")
    assert not torch.equal(block(x) - x, 2 * (before - x))


@pytest.mark.usefixtures("compiled")
def test_frozen_parameters_get_no_gradient_and_the_others_theirs() -> None:
    block, x = block_and_input(8, 2, 4)
    expected = run_block(block, x)
    block.pwconv1.requires_grad_(False)
    names = [name for name, _ in block.named_parameters()]
    kept = [place for place, name in enumerate(names) if "pwconv1" not in name]
    y, _, *found = results(block(x), [x, *(p for p in block.parameters() if p.requires_grad)])
    torch.testing.assert_close([y, *found], [expected[0], *(expected[2 + place] for place in kept)])
    block.requires_grad_(False)
    torch.testing.assert_close(results(block(x), [x]), expected[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiled")
def test_a_second_derivative_is_refused() -> None:
    block, x = block_and_input(8, 1, 4)
    with pytest.raises(RuntimeError, match="no second derivative: set CONVNEXT_KERNELS=0"):
        torch.autograd.grad(block(x).sum(), x, create_graph=True)


@pytest.mark.usefixtures("compiled")
def test_a_model_learns_the_same_checkpointed_compiled_and_by_functional_transforms() -> None:
    model, images = small_model()
    expected = gradients(model, images)
    model.checkpointing = True
    assert all(map(torch.equal, gradients(model, images), expected))
    model.checkpointing = False
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(model, images, compiled), expected, rtol=1e-4, atol=1e-6)

    def loss(parameters: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, image[None]), target[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, images, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close([each[name].mean(0) for name in parameters], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("compiled")
def test_without_gradient_and_for_double_precision_pytorch_computes() -> None:
    model, images = small_model()
    with torch.no_grad():
        x, conv = torch.randn(1, 8, 4, 4), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        assert not kernels.usable(x.requires_grad_(), conv)
    assert kernels.usable(x, conv)
    with torch.autocast("cpu", torch.float16):
        assert not kernels.usable(x, conv)
    assert not kernels.usable(x.double(), conv.double())
    assert not kernels.usable(x.to("meta"), conv.to("meta"))
    assert all(gradient.dtype == torch.float64 for gradient in gradients(model.double(), images.double()))


def test_switched_off_pytorch_computes_the_same(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model(stochastic_depth=0.3)
    expected = gradients(model, images)
    build._find.cache_clear()
    monkeypatch.setenv("CONVNEXT_KERNELS", "0")
    assert kernels.describe() == "PyTorch's own kernels (CONVNEXT_KERNELS=0)"
    torch.testing.assert_close(gradients(model, images), expected, rtol=1e-4, atol=1e-6)
    assert not list(fresh.glob("cache/kernels/.*"))  # nothing half-written


@pytest.mark.usefixtures("compiled", "fresh")
def test_without_mkl_convolutions_alone_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model()
    expected = gradients(model, images)
    build._find.cache_clear()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert kernels.describe().startswith("compiled convolutions alone (")
    torch.testing.assert_close(gradients(model, images), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("compiled")
def test_compiled_once_into_a_folder_of_the_users_own(fresh: Path) -> None:
    assert kernels.describe().startswith("compiled kernels (")
    (path,) = (fresh / "cache" / "kernels").iterdir()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    made = path.stat().st_mtime_ns
    build._find.cache_clear()
    assert build.library() is not None
    assert path.stat().st_mtime_ns == made


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("command", ["'unfinished", "/dev/null"])
def test_a_compiler_that_cannot_be_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    assert kernels.describe().startswith("PyTorch's own kernels (")


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert kernels.describe() == "PyTorch's own kernels (no C compiler: there is no no-such-compiler)"
    model, images = small_model()
    assert len(gradients(model, images)) == len(list(model.parameters()))


def test_a_failing_compiler_is_named_and_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = fresh / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho broken >&2\nexit 3\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert kernels.describe() == f"PyTorch's own kernels ({compiler} failed: broken)"
    assert not list((fresh / "cache" / "kernels").iterdir())


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_what_others_may_have_written_or_is_damaged_is_not_loaded(fresh: Path) -> None:
    folder = fresh / "cache" / "kernels"
    build._compiled(*build._compiler()).write_bytes(b"no library")
    assert "PyTorch's own kernels" in kernels.describe()
    folder.chmod(0o777)
    build._find.cache_clear()
    assert kernels.describe() == f"PyTorch's own kernels (others may write to {folder})"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_no_error(fresh: Path) -> None:
    (fresh / "cache").mkdir(mode=0o500)
    assert "cannot be kept" in kernels.describe()
