"""The blocks' arithmetic for CUDA, on a CPU: as close to exact as PyTorch's, and to others the same model."""

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnext.kernels import cuda
from convnext.models.convnext import Block, ConvNeXt
from tests.support.kernel_cases import errors, results

OPTIONS: list[dict[str, Any]] = [{}, {"stochastic_depth": 0.4}, {"layer_scale": None, "grn": True}]


def pair(**options: Any) -> tuple[Block, Block, Tensor]:
    """A block whose parameters are all drawn at random, the same for CUDA, and an input that wants a gradient."""
    torch.manual_seed(0)
    plain = Block(12, **options).train()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(plain.norm.weight, 1.0, 0.3)
    ours = deepcopy(plain)
    cuda.install(ours, "cpu")
    assert type(ours) is not Block
    x = torch.randn(6, 12, 7, 7).contiguous(memory_format=torch.channels_last)
    return plain, ours, x.requires_grad_()


def computed(block: Block, x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The output and all gradients."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = block(x)
    return results(y, [x, *block.parameters()])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_the_block_in_float32(options: dict[str, Any], training: bool) -> None:
    plain, ours, x = pair(**options)
    for got, expected in zip(computed(ours.train(training), x), computed(plain.train(training), x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS)
def test_under_autocast_it_is_as_close_to_exact_as_the_block(options: dict[str, Any]) -> None:
    plain, ours, x = pair(**options)
    exact = computed(plain, x)
    found, theirs = (errors(computed(block, x, torch.bfloat16), exact) for block in (ours, plain))
    assert max(found) > 1e-3
    for error, limit in zip(found, theirs, strict=True):
        assert error <= max(1.5 * limit, 0.004)


def test_the_sum_stays_in_float32() -> None:
    """Of inputs in bfloat16, too: what a block adds by a small layer scale is not rounded away."""
    _, ours, x = pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ours.gamma is not None
        ours.gamma.fill_(1e-6)
        half = x.bfloat16()
        y = ours(half)
    assert y.dtype == torch.float32
    assert 0 < float((y - half.float()).abs().max()) < 1e-3


def test_in_float16_small_layer_scales_still_count() -> None:
    plain, ours, x = pair(layer_scale=1e-6)
    for block in (plain, ours):
        assert block.gamma is not None
        nn.init.constant_(block.gamma, 1e-6)
    got, expected = (computed(block, x, torch.float16) for block in (ours, plain))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_whoever_listens_to_a_module_hears_it() -> None:
    plain, ours, x = pair()
    heard: list[str] = []
    for name in ("norm", "pwconv2", "drop_path"):
        hook = ours.get_submodule(name).register_forward_hook(lambda *_, name=name: heard.append(name))
        torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)
        hook.remove()
    assert heard == ["norm", "pwconv2", "drop_path"]


def test_the_model_stays_the_same_to_others() -> None:
    torch.manual_seed(0)
    model = ConvNeXt(depths=(1, 2), dims=(8, 16), patch_size=2, num_classes=3)
    before, images = deepcopy(model), torch.randn(2, 3, 16, 16)
    cuda.install(model)
    assert type(model.stages[0][0]) is Block, "on the CPU nothing changes"  # type: ignore[index]
    cuda.install(model, "cpu")
    cuda.install(model, "cpu")
    expected = model(images)
    torch.testing.assert_close(expected, before(images))
    assert str(model) == str(before)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copy.state_dict().keys() == before.state_dict().keys()
        assert type(copy.stages[0][0]) is type(model.stages[0][0])  # type: ignore[index]
        assert torch.equal(copy(images), expected)
    assert isinstance(model.stages[0][0], Block)  # type: ignore[index]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), before(images))
