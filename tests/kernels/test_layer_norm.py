"""Layer normalization against PyTorch's in double precision, alone and before a convolution."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import kernels
from convnext.kernels import build
from convnext.kernels.layer_norm import layer_norm_2d, layer_norm_patches
from convnext.models.convnext import LayerNorm2d
from tests.support.kernel_cases import errors, results, small_model

EPS = 1e-6
TYPES = [torch.float32, torch.bfloat16]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """An image far from zero, a weight and a bias."""
    torch.manual_seed(0)
    x = (3 * torch.randn(shape) + 1).to(dtype).contiguous(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in (x, torch.randn(shape[1]), torch.randn(shape[1]))]


def expected(tensors: list[Tensor], patch: int) -> list[Tensor]:
    """In double precision: the result, square by square, and the gradients."""
    x, weight, bias = exact = [t.detach().double().requires_grad_() for t in tensors]
    y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS)
    n, h, w, c = y.shape
    y = y.reshape(n, h // patch, patch, w // patch, patch, c).transpose(2, 3)
    return results(y.reshape(n, h // patch, w // patch, -1), exact)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("out", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((2, 5, 7, 9), 1),
        ((1, 1, 1, 1), 1),
        ((37, 64, 4, 6), 2),
        ((3, 33, 6, 9), 3),
        ((2, 48, 8, 4), 4),
        ((2, 130, 5, 15), 5),
    ],
)
def test_normalized_values_and_gradients_are_exact(
    shape: tuple[int, ...], patch: int, dtype: torch.dtype, out: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    actual = []
    x, weight, bias = tensors = inputs(shape, dtype)
    for threads in (1, 3):
        set_threads(threads)
        y = layer_norm_patches(x, weight, bias, EPS, out, patch)
        assert y.dtype == out
        actual.append(results(y, tensors))
    assert all(map(torch.equal, *actual))
    bounds = 4e-3 if out == torch.bfloat16 else 2e-6, 4e-3 if dtype == torch.bfloat16 else 2e-6, 2e-6, 2e-6
    if shape[1] > 1:  # of one channel nothing is left but the bias
        assert all(
            error < bound for error, bound in zip(errors(actual[0], expected(tensors, patch)), bounds, strict=True)
        )
    if patch == 1:
        y = layer_norm_2d(x, weight, bias, EPS, out)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y.permute(0, 2, 3, 1), actual[0][0])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which compiled functions are called from now on."""
    calls, call = list[str](), build.Library.__call__

    def record(library: build.Library, name: str, *arguments: Tensor | int | float | None) -> None:
        calls.append(name)
        call(library, name, *arguments)

    monkeypatch.setattr(build.Library, "__call__", record)
    return calls


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("size", [16, 18])  # 18: the second stage's patches leave a line over
def test_a_model_in_bfloat16_normalizes_with_it(overlap: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = small_model(overlap=overlap)
    images = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    plain, exact = deepcopy(model), deepcopy(model).double()
    kernels.remove(plain)
    kernels.remove(exact)
    calls = counted(monkeypatch)

    def gradients(model: nn.Module, autocast: bool = True, images: Tensor = images) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images).to(images.dtype), torch.tensor([0, 1, 2, 0]))
        return list(torch.autograd.grad(loss, list(model.parameters())))

    right = gradients(exact, False, images.double())
    ours, theirs = errors(gradients(model), right), errors(gradients(plain), right)
    assert calls.count("layer_norm_forward") == calls.count("layer_norm_backward") == 2
    assert sum(ours) < 1.1 * sum(theirs)
    calls.clear()
    gradients(model, autocast=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert "layer_norm_forward" not in calls


@pytest.mark.usefixtures("compiled")
def test_before_a_convolution_it_is_left_alone_where_anybody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(LayerNorm2d(8), nn.Conv2d(8, 12, 2, 2))
    kernels.install(layers)
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    seen, calls = list[torch.dtype](), counted(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        together = layers(x)
        hook = layers[0].register_forward_hook(lambda *inputs: seen.append(inputs[-1].dtype))
        apart = layers(x)
        hook.remove()
        assert seen == [torch.float32]
        assert calls == ["layer_norm_forward"] * 2
        torch.testing.assert_close(apart, together, rtol=2e-2, atol=2e-2)
        layers.append(nn.ReLU())
        assert torch.equal(layers(x), apart.relu())
        layers[0] = nn.Identity()
        assert torch.equal(layers(x), layers[1](x).relu())


@pytest.mark.usefixtures("compiled")
def test_held_before_a_convolution_it_computes_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(LayerNorm2d(8), nn.Conv2d(8, 12, 2, 2)).to(memory_format=torch.channels_last).eval()
    kernels.install(layers)
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=torch.channels_last)

    def run(x: Tensor = x, autocast: bool = True) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y: Tensor = layers(x)
            return y.clone()

    conv, plain, wide = layers[1], run(), run(autocast=False)
    calls = counted(monkeypatch)
    with kernels.held(layers):
        held = run()
        assert calls == ["layer_norm_forward"]
        assert held.dtype == plain.dtype == torch.bfloat16
        assert held.is_contiguous(memory_format=torch.channels_last)
        assert errors([held], [wide.double()])[0] < 1.1 * errors([plain], [wide.double()])[0] + 1e-4
        assert torch.equal(run(autocast=False), wide)
        run(torch.randn(1, 8, 5, 6).contiguous(memory_format=torch.channels_last))  # a line is left over
        assert calls == ["layer_norm_forward"]
        with torch.no_grad():
            for parameter in layers[1].parameters():
                parameter.mul_(2)
        torch.testing.assert_close(run(), 2 * held, rtol=1e-2, atol=1e-2)
        other = LayerNorm2d(8).requires_grad_(False)
        other.weight.mul_(-1)
        kernels.install(other)
        layers[0] = other
        negative = run()
        assert calls == ["layer_norm_forward"] * 3
        assert not torch.equal(negative, 2 * held)
        assert torch.vmap(layers)(torch.randn(3, 2, 8, 8, 8)).shape == (3, 2, 12, 4, 4)
        layers[1] = kernels.PatchConv2d(16, 12, 2, 2).to(memory_format=torch.channels_last)
        with pytest.raises(RuntimeError, match="16 channels"):
            run()
        layers[1] = conv
        assert torch.equal(run(), negative)
    assert calls == ["layer_norm_forward"] * 4
    torch.testing.assert_close(run(), negative, rtol=2e-2, atol=2e-2)
    assert calls == ["layer_norm_forward"] * 4  # no longer held


class Float32Conv2d(nn.Conv2d):
    """One that does not want what it convolves in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        assert input.dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            return super().forward(input)


@pytest.mark.usefixtures("compiled")
def test_a_convolution_of_your_own_gets_what_it_would_without_kernels() -> None:
    layers = nn.Sequential(LayerNorm2d(8), nn.Conv2d(8, 12, 2, 2))
    kernels.install(layers)
    layers[1] = Float32Conv2d(8, 12, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers(torch.randn(2, 8, 4, 4)).dtype == torch.float32
