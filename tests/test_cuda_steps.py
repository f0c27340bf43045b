"""A step on a GPU: nobody waits for it, it decides as the host does, and its arithmetic is that of the model.

Needs a CUDA device, as ``test_cuda.py`` does.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext import create_model
from convnext.data.loading.loader import Batch
from convnext.kernels import cuda
from convnext.runs import checkpoint
from convnext.training import trainer as trainer_module
from convnext.training.interruption import StopSignals
from convnext.training.trainer import Trainer
from tests.support.gpu import DEVICE, RANDOM, STEPS, losses, tiny
from tests.support.kernel_cases import errors

pytestmark = pytest.mark.cuda


class Watched(Trainer):
    """A run in which PyTorch refuses to wait for the device within a step."""

    def step(self, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return super().step(batch, signals)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("optimizer", "mix_by"), [("adamw", "batch"), ("sgd", "element"), ("muon", "batch")])
def test_the_device_is_not_waited_for_within_a_step(
    precision: str, optimizer: str, mix_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext.training.train.Trainer", Watched)
    changes = {**RANDOM, "precision": precision, "optimizer.name": optimizer, "augment.mix_by": mix_by}
    run = convnext.train(tiny(tmp_path, **changes, **{"loss.class_weights": "balanced"}))
    state = checkpoint.read_state(checkpoint.find(run.path))
    assert state.step == STEPS
    assert np.isfinite(run.report.loss)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_the_device_leaves_out_the_steps_that_the_host_would(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiled(Trainer):
        def to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            images, targets, labels = super().to_device(batch)
            return images * torch.nan if self.state.step in (1, 5) else images, targets, labels

    monkeypatch.setattr("convnext.training.train.Trainer", Spoiled)
    states = []
    for on_device in (False, True):
        monkeypatch.setattr(trainer_module, "decides_on_device", lambda _, value=on_device: value)
        run = convnext.train(tiny(tmp_path / str(on_device), ema_decay=0.9, **{"optimizer.name": optimizer}))
        states.append(checkpoint.read_tensors(checkpoint.find(run.path) / "training.safetensors"))
        assert checkpoint.read_state(checkpoint.find(run.path)).skipped_in_all == 2
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=name)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("parts", [1, 2])  # with CUDA graphs, and without
def test_a_compiled_step_computes_the_same(parts: int, tmp_path: Path) -> None:
    growing: dict[str, Any] = {"data.image_size": 16, "data.start_size": 8, "epochs": 3, "gradient_accumulation": parts}
    eager, compiled = (losses(tmp_path / str(on), compile=on, **growing) for on in (False, True))
    assert len(compiled) == 3 * STEPS
    assert compiled == pytest.approx(eager, rel=1e-3)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_compute_what_they_did_before(precision: str) -> None:
    """Output and gradients in float32, and in bfloat16 as close to them as PyTorch's operations are."""
    torch.manual_seed(0)
    plain = create_model("convnext_tiny", 10, depths=(1, 2), dims=(32, 64), patch_size=2, layer_scale=0.5).to(DEVICE)
    ours = deepcopy(plain)
    cuda.install(ours)
    assert type(ours.get_submodule("stages.0.0")) is not type(plain.get_submodule("stages.0.0"))
    images = torch.randn(16, 3, 32, 32, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def computed(model: nn.Module, half: bool) -> list[Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            logits = model(images).float()
        return [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]

    exact = computed(plain, False)
    if precision == "fp32":
        torch.testing.assert_close(computed(ours, False), exact, rtol=1e-4, atol=1e-4)
        return
    found, limits = (errors(computed(model, True), exact) for model in (ours, plain))
    for error, limit in zip(found, limits, strict=True):
        assert error <= max(2 * limit, 0.01)
