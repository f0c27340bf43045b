"""The kernels for training on CPU against PyTorch's operations in double precision."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import kernels
from convnext.kernels import build
from convnext.models.convnext import Block, ConvNeXt

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


def error(got: Tensor, exact: Tensor) -> float:
    """Relative to the size of the exact result."""
    return float((got.double() - exact).norm() / exact.norm())


def errors(got: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    return [error(a, b) for a, b in zip(got, exact, strict=True)]


def results(y: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """An output and, for a gradient of ones and minus ones, those of the inputs."""
    signs = torch.where(torch.arange(y.numel()) % 3 == 0, 1.0, -1.0).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, signs)]


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
        assert kernels.usable(x, weight)
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


def block_and_input(dim: int, n: int, side: int, **options: float) -> tuple[Block, Tensor]:
    """A block whose parameters are all drawn at random, and an input that wants a gradient."""
    torch.manual_seed(0)
    block = Block(dim, layer_scale=1.0, **options).train()  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(block.norm.weight, 1.0, 0.3)
    x = torch.randn(n, dim, side, side).contiguous(memory_format=torch.channels_last)
    return block, x.requires_grad_()


def run_block(block: Block, x: Tensor, autocast: bool = False) -> list[Tensor]:
    """The output and all gradients."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = block(x)
    return results(y, [x, *block.parameters()])


def without_kernels(block: Block, x: Tensor, autocast: bool = False) -> list[Tensor]:
    """The same with PyTorch's operations: any hook makes the block call its modules."""
    block = deepcopy(block)
    block.norm.register_forward_hook(lambda *_: None)
    block.dwconv.__class__ = nn.Conv2d  # type: ignore[assignment]
    return run_block(block, x, autocast)


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


def small_model(**options: float) -> tuple[ConvNeXt, Tensor]:
    torch.manual_seed(0)
    model = ConvNeXt(depths=(1, 2), dims=(8, 16), patch_size=2, num_classes=3, layer_scale=1.0, **options)  # type: ignore[arg-type]
    return model.to(memory_format=torch.channels_last), torch.randn(4, 3, 16, 16)


def gradients(model: ConvNeXt, images: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Of all parameters; ``call`` stands for the model."""
    torch.manual_seed(1)
    loss = F.cross_entropy(model(images) if call is None else call(images), torch.tensor([0, 1, 2, 0]))
    return list(torch.autograd.grad(loss, list(model.parameters())))


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
        x, weight = torch.randn(1, 8, 4, 4), torch.randn(8, 1, 7, 7)
        assert not kernels.usable(x.requires_grad_(), weight)
    assert not kernels.usable(x.double(), weight.double())
    assert not kernels.usable(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.float16):
        assert not kernels.usable(x, weight)
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
