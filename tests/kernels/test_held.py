"""Blocks without gradient, whose weights are held in the kernels' order."""

import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convnext import kernels
from convnext.kernels.held import HeldBlock
from convnext.models.convnext import Block, ConvNeXt
from tests.support.kernel_cases import block_and_input, error, without_kernels


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types in which held blocks have computed."""
    made: list[torch.dtype] = []
    plain = HeldBlock.__call__

    def counted(self: HeldBlock, x: Tensor) -> Tensor:
        made.append(x.dtype)
        return plain(self, x)

    monkeypatch.setattr(HeldBlock, "__call__", counted)
    return made


def run(block: Callable[[Tensor], Tensor], x: Tensor, autocast: bool = False) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return block(x).clone()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("dim", "n", "size"), [(5, 2, 7), (64, 3, 17), (144, 3, 20), (768, 1, 7), (24, 1, 1)])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_held_block_computes_what_its_modules_do(
    dim: int, n: int, size: int, autocast: bool, calls: list[torch.dtype]
) -> None:
    block, x = block_and_input(dim, n, size)
    block.eval()
    exact = without_kernels(block, x)[0].double()
    plain = without_kernels(block, x, autocast)[0]
    kernels.hold(block)
    held = run(block, x.detach(), autocast)
    assert len(calls) == (0 if autocast and dim % 2 else 1)
    assert held.dtype == plain.dtype == torch.float32
    assert held.is_contiguous(memory_format=torch.channels_last)
    assert error(held, exact) < (1.3 * error(plain, exact) + 1e-3 if autocast else 1e-5)
    assert torch.equal(held, run(block, x.detach(), autocast))


@pytest.mark.usefixtures("compiled")
def test_weights_that_change_are_seen(calls: list[torch.dtype]) -> None:
    block, x = block_and_input(24, 2, 5)
    block.eval()
    with kernels.held(block):
        before = run(block, x.detach())
        with torch.no_grad():
            block.pwconv1.weight.mul_(2)
        changed = run(block, x.detach())
        block.load_state_dict({name: value + 1 for name, value in block.state_dict().items()})
        loaded = run(block, x.detach())
        assert len(calls) == 3
    assert not torch.equal(before, changed)
    torch.testing.assert_close(loaded, without_kernels(block, x)[0], rtol=1e-4, atol=1e-4)
    run(block, x.detach())
    assert len(calls) == 3  # no longer held


@pytest.mark.usefixtures("compiled")
def test_training_gradients_listeners_and_other_forwards_are_as_without(calls: list[torch.dtype]) -> None:
    block, x = block_and_input(24, 2, 5)
    kernels.hold(block)
    run(block.train(), x.detach())
    block.eval()(x).sum().backward()
    assert x.grad is not None
    heard: list[str] = []
    hook = block.pwconv1.register_forward_hook(lambda *_: heard.append("pwconv1"))
    run(block, x.detach())
    hook.remove()
    assert heard == ["pwconv1"]
    assert not calls
    run(block, x.detach())
    assert calls
    block.act = nn.GELU("tanh")
    torch.testing.assert_close(run(block, x.detach()), without_kernels(block, x)[0])
    assert len(calls) == 1


@pytest.mark.usefixtures("compiled")
def test_a_layer_scale_that_is_added_is_seen(calls: list[torch.dtype]) -> None:
    block = Block(8, layer_scale=None).eval()
    kernels.install(block)
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    with kernels.held(block):
        assert not torch.equal(run(block, x), x)
        block.gamma = nn.Parameter(torch.zeros(8), requires_grad=False)
        assert torch.equal(run(block, x), x)
    assert len(calls) == 2


@pytest.mark.usefixtures("compiled")
def test_other_inputs_compile_and_copies(calls: list[torch.dtype]) -> None:
    torch.manual_seed(0)
    model = ConvNeXt(depths=(1, 2), dims=(8, 16), patch_size=2, num_classes=3, layer_scale=1.0).eval()
    kernels.install(model)
    images = torch.randn(4, 3, 16, 16)
    expected = run(model, images)
    kernels.hold(model)
    torch.testing.assert_close(run(model, images), expected)  # not channels_last
    assert len(calls) == 3
    copied = pickle.loads(pickle.dumps(model))
    stored = io.BytesIO()
    torch.save(model, stored)
    assert stored.tell() < 1.1 * sum(4 * p.numel() for p in model.parameters()) + 20_000
    torch.testing.assert_close(run(copied, images), expected)
    assert len(calls) == 3  # a copy holds nothing
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(run(compiled, images), expected)
    with torch.no_grad():
        exported = torch.export.export(model, (images,))
    torch.testing.assert_close(run(exported.module(), images), expected)
    assert len(calls) == 3
    assert not any(isinstance(module, Block) and module.training for module in model.modules())
