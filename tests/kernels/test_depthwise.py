"""The depthwise convolution against PyTorch's in double precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convnext import kernels
from convnext.kernels import build
from convnext.kernels.depthwise import convolve_with_shortcut
from tests.support.kernel_cases import errors, results

AUTOCAST = {"fp32": False, "bf16": True}


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "size"),
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
    shape: tuple[int, int, int, int], size: int, precision: str
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(shape[1], 1, size, size), torch.randn(shape[1])
    if AUTOCAST[precision]:
        x = x.bfloat16()
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST[precision]):
        assert kernels.usable(x, nn.Conv2d(shape[1], shape[1], size, padding=size // 2, groups=shape[1]))
        y = kernels.depthwise_conv2d(x, weight, bias)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = results(F.conv2d(exact[0], exact[1], exact[2], padding=size // 2, groups=shape[1]), exact)
    actual = errors(results(y, inputs), expected)
    assert y.dtype == x.dtype
    assert max(actual[2:]) < 2e-6  # the sums are float32 in both
    assert max(actual[:2]) < (4e-3 if AUTOCAST[precision] else 2e-6)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_under_autocast_what_is_in_float32_is_convolved_as_bfloat16(size: int) -> None:
    torch.manual_seed(0)
    for shape in ((3, 20, 6, 5), (2, 16, 5, 8), (1, 7, 1, 3)):
        shapes = shape, (shape[1], 1, size, size), (shape[1],)
        inputs = [torch.randn(each).requires_grad_() for each in shapes]
        with torch.autocast("cpu", torch.bfloat16):
            y, shortcut = convolve_with_shortcut(inputs[0], inputs[1], inputs[2])
        assert y.dtype == torch.bfloat16
        exact = [t.detach().double().requires_grad_() for t in inputs]
        wide = F.conv2d(exact[0], exact[1], exact[2], padding=size // 2, groups=shape[1])
        expected = results(wide + exact[0], exact)
        assert max(errors(results(y.float() + shortcut, inputs), expected)) < 5e-3
        assert errors([y.detach()], [wide.detach()])[0] < 5e-3


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_depthwise_convolution_does_not_depend_on_the_number_of_threads(
    precision: str, set_threads: Callable[[int], None]
) -> None:
    conv = nn.Conv2d(40, 40, 7, padding=3, groups=40)
    x, actual = torch.randn(21, 40, 9, 9, requires_grad=True), []
    for threads in (1, 2, 3):
        set_threads(threads)
        with torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST[precision]):
            y = kernels.depthwise_conv2d(x, conv.weight, conv.bias)
        actual.append(results(y, [x, conv.weight, conv.bias]))  # type: ignore[list-item]
    for other in actual[1:]:
        assert all(map(torch.equal, actual[0], other))


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
def test_without_gradient_and_for_other_types_and_devices_pytorch_computes() -> None:
    x, conv = torch.randn(1, 8, 4, 4), nn.Conv2d(8, 8, 7, padding=3, groups=8)
    with torch.no_grad():
        assert not kernels.usable(x.requires_grad_(), conv)
    assert kernels.usable(x, conv)
    with torch.autocast("cpu", torch.float16):
        assert not kernels.usable(x, conv)
    assert not kernels.usable(x.double(), conv.double())
    assert not kernels.usable(x.to("meta"), conv.to("meta"))


@pytest.mark.usefixtures("compiled")
def test_too_large_for_memory() -> None:
    with pytest.raises(MemoryError, match="depthwise_forward"):
        build.compiled()("depthwise_forward", None, 0, None, None, None, None, 0, 1, 1 << 30, 1 << 20, 1, 7)
