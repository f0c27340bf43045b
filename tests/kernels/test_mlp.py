"""A block's linear layers, and whole blocks, against PyTorch's operations in double precision."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from convnext import kernels
from convnext.kernels import build
from convnext.models.convnext import Block
from tests.support.kernel_cases import block_and_input, errors, results, run_block, without_kernels


# Channels that do not fill a vector; several chunks and a part of one, with the hidden layer computed again, then kept.
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("dim", "n", "size"), [(5, 2, 7), (64, 67, 8), (144, 3, 20), (24, 3, 1)])
@pytest.mark.parametrize("depth", [0.0, 0.4])
def test_a_block_computes_what_its_modules_do(dim: int, n: int, size: int, depth: float) -> None:
    block, x = block_and_input(dim, n, size, stochastic_depth=depth)
    expected = [t.double() for t in without_kernels(block, x)]
    actual = run_block(block, x)
    assert all(a.dtype == torch.float32 for a in actual)
    assert max(errors(actual, expected)) < 1e-5


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("dim", "n", "size", "depth"), [(64, 67, 8, 0.0), (64, 67, 8, 0.4), (260, 11, 10, 0.0)])
def test_in_bfloat16_a_block_is_about_as_exact_as_its_modules(dim: int, n: int, size: int, depth: float) -> None:
    block, x = block_and_input(dim, n, size, stochastic_depth=depth)
    exact = [t.double() for t in without_kernels(block, x)]
    plain = errors(without_kernels(block, x, autocast=True), exact)
    for ours, theirs in zip(errors(run_block(block, x, autocast=True), exact), plain, strict=True):
        assert ours < 1.3 * theirs + 1e-3


@pytest.mark.usefixtures("compiled")
def test_a_block_in_bfloat16_without_autocast_trains() -> None:
    block, x = block_and_input(24, 3, 5)
    exact = [t.double() for t in without_kernels(block, x)]
    half, x_half = block.bfloat16(), x.detach().bfloat16().requires_grad_()
    actual = run_block(half, x_half)
    assert all(t.dtype == torch.bfloat16 for t in actual)
    assert max(errors(actual, exact)) < 0.03


@pytest.mark.usefixtures("compiled")
def test_what_is_computed_is_the_same_each_time() -> None:
    block, x = block_and_input(64, 67, 8)
    assert all(map(torch.equal, run_block(block, x), run_block(block, x)))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_block_computes_the_same_in_any_number_of_threads(autocast: bool, set_threads: Callable[[int], None]) -> None:
    block, x = block_and_input(64, 67, 8)
    actual = []
    for threads in (1, 2, 3):
        set_threads(threads)
        actual.append(run_block(block, x, autocast))
    for other in actual[1:]:
        assert max(errors(other, [t.double() for t in actual[0]])) < (3e-3 if autocast else 1e-5)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("autocast", [False, True])
def test_threads_that_change_before_the_gradient(autocast: bool, set_threads: Callable[[int], None]) -> None:
    block, x = block_and_input(144, 3, 20)
    expected = [t.double() for t in run_block(block, x, autocast)]
    set_threads(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = block(x)
    set_threads(1)
    actual = results(y, [x, *block.parameters()])
    assert max(errors(actual, expected)) < (3e-3 if autocast else 1e-5)


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
        actual = run_block(block, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, actual, expected))


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
def test_norms_that_stay_float32_and_a_whole_epsilon() -> None:
    block, x = block_and_input(24, 2, 5)
    block.norm.eps = 1
    torch.testing.assert_close(run_block(block, x), without_kernels(block, x), rtol=1e-4, atol=1e-4)
    mixed, half = block.bfloat16(), x.detach().bfloat16().requires_grad_()
    mixed.norm.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixed(half), without_kernels(mixed, half, autocast=True)[0])


@pytest.mark.usefixtures("compiled")
def test_sizes_that_do_not_fit_and_too_large_ones() -> None:
    block, x = block_and_input(24, 2, 5)
    with pytest.raises(ValueError, match=r"layers of 24, 24, 23 channels for an input of \(2, 24, 5, 5\)"):
        kernels.mlp(x, x, block.norm, block.pwconv1, nn.Linear(96, 23), None, None)
    with pytest.raises(MemoryError, match="mlp_forward"):
        build.compiled()("mlp_forward", 0, 0, 0, 0, 1, 1, 1, 1 << 50, 1, 1, 1e-6, *[None] * 9)


@pytest.mark.usefixtures("compiled")
def test_frozen_parameters_get_no_gradient_and_the_others_theirs() -> None:
    block, x = block_and_input(8, 2, 4)
    expected = run_block(block, x)
    block.pwconv1.requires_grad_(False)
    names = [name for name, _ in block.named_parameters()]
    trained = [index for index, name in enumerate(names) if "pwconv1" not in name]
    y, _, *actual = results(block(x), [x, *(p for p in block.parameters() if p.requires_grad)])
    torch.testing.assert_close([y, *actual], [expected[0], *(expected[2 + index] for index in trained)])
    block.requires_grad_(False)
    torch.testing.assert_close(results(block(x), [x]), expected[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiled")
def test_a_second_derivative_is_refused() -> None:
    block, x = block_and_input(8, 1, 4)
    with pytest.raises(RuntimeError, match="no second derivative: set CONVNEXT_KERNELS=0"):
        torch.autograd.grad(block(x).sum(), x, create_graph=True)
