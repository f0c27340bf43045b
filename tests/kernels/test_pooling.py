"""Max-pooling against PyTorch's, to the bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import create_model, kernels
from convnext.kernels.pooling import MOST_KERNEL_SIZE, max_pool2d
from convnext.models.convnext import PooledConv2d
from tests.support.kernel_cases import results


def images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Few values, so that many are equal, and among them infinities, NaN, zeros of both signs and subnormal numbers."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw).round()
    for value in (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-39, -1e-39):
        x[torch.rand(shape, generator=draw) < 0.05] = value
    return x.to(dtype)


def bits(tensors: list[Tensor]) -> list[Tensor]:
    """To compare: NaN are alike, and zeros of different sign are not."""
    return [torch.stack([t.nan_to_num(nan=77.0).float(), torch.signbit(t) & ~t.isnan()]) for t in tensors]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("shape", "kernel_size"),
    [
        ((2, 5, 7, 9), 2),
        ((2, 5, 7, 9), 3),
        ((3, 48, 12, 11), 2),
        ((1, 64, 8, 8), 4),
        ((2, 33, 2, 2), 2),
        ((2, 3, 5, 1), 1),
        ((1, 17, 35, 16), MOST_KERNEL_SIZE),
    ],
)
def test_the_same_bits_as_pytorch(
    shape: tuple[int, ...],
    kernel_size: int,
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    set_threads: Callable[[int], None],
) -> None:
    x = images(shape, dtype).contiguous(memory_format=memory_format).requires_grad_()
    actual = []
    for threads in (1, 3):
        set_threads(threads)
        actual.append(results(max_pool2d(x, kernel_size), [x]))
    expected = results(F.max_pool2d(x, kernel_size), [x])
    for each in actual:
        assert [t.dtype for t in each] == [dtype] * 2
        assert all(map(torch.equal, bits(each), bits(expected)))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_that_pools_computes_the_same_bits_with_it(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = create_model("convnext_tiny", 3, depths=(1, 1), dims=(8, 16), patch_size=4, pool=True, whitening=True)
    model.to(memory_format=torch.channels_last).train()
    kernels.install(model)
    x, called = torch.randn(4, 3, 35, 37), list[int]()

    def counted(x: Tensor, kernel_size: int) -> Tensor:
        called.append(kernel_size)
        return max_pool2d(x, kernel_size)

    def gradients() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x).float(), torch.tensor([0, 1, 2, 0]))
        return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))

    monkeypatch.setattr("convnext.kernels.modules.max_pool2d", counted)
    with_kernel = gradients()
    assert called == [2, 2]
    monkeypatch.setattr("convnext.kernels.modules.MOST_KERNEL_SIZE", 1)  # all are left to PyTorch
    assert all(map(torch.equal, gradients(), with_kernel))
    assert called == [2, 2]


@pytest.mark.usefixtures("compiled")
def test_what_it_does_not_compute_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Sequential(PooledConv2d(3, 4, 2))
    kernels.install(conv)

    def refused(*_: object) -> Tensor:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr("convnext.kernels.modules.max_pool2d", refused)
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        expected = conv(x)
    assert expected.shape == (1, 4, 3, 3)
    exported = torch.export.export(conv, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    assert conv.double()(x.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="too small"):
        conv.float()(x[..., :1])
