"""Kernels in a model's modules: put in, copied, stored, recorded, taken out."""

import io
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from convnext import create_model, kernels
from convnext.kernels import build
from convnext.models.convnext import Block
from tests.support.kernel_cases import block_and_input, error, gradients, results, small_model


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
def test_double_precision_is_left_to_pytorch() -> None:
    model, images = small_model()
    assert all(gradient.dtype == torch.float64 for gradient in gradients(model.double(), images.double()))


def classes(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


def test_taken_out_nothing_is_left_of_them() -> None:
    model = create_model("convnext_tiny", 3, depths=(1, 2), dims=(8, 16), patch_size=2)
    before, names = classes(model), list(model.state_dict())
    assert not kernels.installed(model)
    kernels.install(model)
    changed = classes(model)
    assert kernels.installed(model)
    assert sum(a is not b for a, b in zip(before, changed, strict=True)) == 2 * 3 + 2 * 2 + 1  # blocks and stages
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, Block) for module in model.modules()) == 3
    kernels.install(model)
    assert classes(model) == changed
    kernels.remove(model)
    assert classes(model) == before


@pytest.mark.usefixtures("compiled")
def test_the_kernels_compute_only_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model()
    calls = list[str]()
    call = build.Library.__call__

    def record(library: build.Library, name: str, *arguments: Tensor | int | float | None) -> None:
        calls.append(name)
        call(library, name, *arguments)

    monkeypatch.setattr(build.Library, "__call__", record)
    with_kernels = gradients(model, images)
    assert calls.count("mlp_forward") == calls.count("mlp_backward") == calls.count("depthwise_gradient") == 3
    calls.clear()
    kernels.remove(model)
    torch.testing.assert_close(gradients(model, images), with_kernels, rtol=1e-4, atol=1e-6)
    assert not calls


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("pool", [False, True])
def test_copies_and_stored_models_have_them_too(pool: bool) -> None:
    model, images = small_model(stochastic_depth=0.3, pool=pool)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    expected = gradients(model, images)
    for copied in (deepcopy(model), torch.load(stream, weights_only=False)):
        assert classes(copied) == classes(model)
        assert all(map(torch.equal, gradients(copied, images), expected))
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}


def test_export_and_trace() -> None:
    model, images = small_model()
    expected = model(images)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    torch.testing.assert_close(exported.module()(images), expected, rtol=1e-4, atol=1e-5)
    traced = torch.jit.trace(model, images)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(images), expected, rtol=1e-4, atol=1e-5)


def test_a_block_with_a_forward_of_its_own_keeps_it() -> None:
    class Renamed(Block):
        """The same computation in a class of its own."""

    class Negated(Block):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    x, same, other = torch.randn(2, 8, 4, 4), Renamed(8), Negated(8)
    expected = other(x)
    kernels.install(nn.ModuleList([same, other]))
    assert type(other) is Negated
    torch.testing.assert_close(other(x), expected)
    assert type(same) is not Renamed
    assert isinstance(same, Renamed)
    kernels.remove(same)
    assert type(same) is Renamed


def test_other_devices_are_left_alone() -> None:
    with torch.device("meta"):
        model = create_model("convnext_tiny")
    kernels.install(model)
    assert not kernels.installed(model)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["convnextv2_atto", "roadmap"])
def test_depthwise_convolutions_of_other_models(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"depths": (1, 1), "patch_size": 2, "dims": (24, 48)}
    model, images = create_model(name, 3, **sizes), torch.randn(4, 3, 16, 16)
    expected = gradients(model, images)
    kernels.install(model)
    convolutions = [module for module in model.modules() if isinstance(module, kernels.DepthwiseConv2d)]
    assert len(convolutions) == 2
    torch.testing.assert_close(gradients(model, images), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("fresh")
def test_under_autocast_convolutions_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    conv, x = nn.Conv2d(8, 8, 7, padding=3, groups=8), torch.randn(2, 8, 6, 6)
    expected = conv(x)
    model = nn.Sequential(conv)
    kernels.install(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), expected)
        with torch.no_grad():
            assert torch.equal(model(x), expected)
        kernels.remove(model)
        assert model(x).dtype == torch.bfloat16


@pytest.mark.parametrize(("size", "patch"), [(16, 4), (12, 2), (13, 2)])
def test_convolutions_of_patches_train_in_bfloat16(size: int, patch: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, patch, patch).to(memory_format=torch.channels_last)
    x = torch.randn(3, 6, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()

    def run(autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = conv(x)
        return results(y, [x, *conv.parameters()])

    exact, plain = [t.double() for t in run(False)], run(True)
    kernels.install(conv)
    assert isinstance(conv, kernels.PatchConv2d)
    assert all(map(torch.equal, run(False), [t.float() for t in exact]))
    for ours, theirs, expected in zip(run(True), plain, exact, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert error(ours, expected) < 1.3 * error(theirs, expected) + 1e-3
    kernels.remove(conv)
    assert type(conv) is nn.Conv2d
