"""What is different on a GPU: arithmetic, memory formats, transfers, compiled steps, and runs that change device.

Needs a CUDA device: ``CUDA_VISIBLE_DEVICES=0 pytest -m cuda``, which is a part of ``make test`` where there is one.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from copy import deepcopy
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import AdamW
from torch.overrides import TorchFunctionMode

import convnext
from convnext import create_model, kernels, recipe
from convnext.data.loading.loader import batches
from convnext.devices import make_accelerator, pick_device, pick_precision
from convnext.runs import checkpoint
from convnext.training.memory import micro_batches_that_fit
from tests.support.gpu import DEVICE, RANDOM, STEPS, fit, losses, prepared, stopped_at, tiny
from tests.support.killing import result

pytestmark = pytest.mark.cuda


def test_auto_takes_the_gpu_and_the_half_precision_that_it_computes_in() -> None:
    """Older GPUs emulate bf16, slowly, but compute in fp16."""
    own = torch.cuda.is_bf16_supported(including_emulation=False)
    assert pick_device("auto") == DEVICE
    assert pick_precision("auto", DEVICE) == ("bf16" if own else "fp16")
    accelerator = make_accelerator(recipe("digits"))
    assert accelerator.device.type == DEVICE
    assert accelerator.mixed_precision == ("bf16" if own else "fp16")
    assert (accelerator.scaler is None) == own


def test_bf16_learns_and_keeps_float32_weights(tmp_path: Path) -> None:
    trainer = prepared(tiny(tmp_path, precision="bf16", epochs=2, ema_decay=0.9))
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, output: seen.setdefault(name, set()).add(output.dtype)

    for name in ("downsample_layers.0.0", "stages.0.0.pwconv1", "stages.1.0.pwconv2"):
        trainer.raw_model.get_submodule(name).register_forward_hook(note(name))
    found = fit(trainer, tmp_path / "run")
    assert all(dtypes == {torch.bfloat16} for dtypes in seen.values())
    assert len(seen) == 3
    assert len(found) == 2 * STEPS
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    weights, training = (
        checkpoint.read_tensors(checkpoint.find(tmp_path / "run") / f"{name}.safetensors")
        for name in ("model", "training")
    )
    kept = {**weights, **{name: x for name, x in training.items() if name != "average.updates"}}
    assert {x.dtype for x in (*trainer.raw_model.parameters(), *kept.values())} == {torch.float32}


def test_adamw_is_fused_and_steps_as_the_plain_one(tmp_path: Path) -> None:
    trainer = prepared(tiny(tmp_path))
    (fused,) = trainer.optimizers
    assert isinstance(fused, AdamW)
    assert all(group["fused"] for group in fused.param_groups)
    model, copy = trainer.raw_model, deepcopy(trainer.raw_model)
    twins = dict(zip(model.parameters(), copy.parameters(), strict=True))
    plain = AdamW(
        [
            {**group, "fused": False, "params": [twins[parameter] for parameter in group["params"]]}
            for group in fused.param_groups
        ]
    )
    before = deepcopy(copy)
    for _ in range(3):
        for parameter, twin in twins.items():
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        fused.step()
        plain.step()
    for (name, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(parameter, old), name
        torch.testing.assert_close(parameter, twins[parameter], msg=name)
        assert fused.state[parameter]["step"].device.type == DEVICE


@pytest.mark.usefixtures("exact")
def test_channels_last_is_a_matter_of_memory_alone(small_folder: Path, tmp_path: Path) -> None:
    found = {}
    for last in (True, False):
        folder = {"name": "folder", "root": small_folder}  # in colour: one channel has no order in memory
        settings = tiny(tmp_path, channels_last=last, data=folder, batch_size=16, epochs=3)
        trainer = prepared(settings)
        formats: set[tuple[bool, bool]] = set()

        def note(_: nn.Module, inputs: tuple[Tensor, ...], to: set[tuple[bool, bool]] = formats) -> None:
            to.add((inputs[0].is_contiguous(memory_format=torch.channels_last), inputs[0].is_contiguous()))

        trainer.raw_model.get_submodule("downsample_layers.0.0").register_forward_pre_hook(note)
        found[last] = fit(trainer, tmp_path / str(last))
        # Evaluation is always in channels_last.
        assert formats == {(True, False), (last, not last)}
        kernels_4d = [parameter for parameter in trainer.raw_model.parameters() if parameter.ndim == 4]
        wanted = torch.channels_last if last else torch.contiguous_format
        assert len(kernels_4d) == 4
        assert all(kernel.is_contiguous(memory_format=wanted) for kernel in kernels_4d)
    assert len(found[True]) == 9
    assert found[True] == pytest.approx(found[False], rel=1e-3)


@pytest.mark.usefixtures("exact")
def test_the_gpu_computes_what_the_cpu_does(tmp_path: Path) -> None:
    mixed = {"augment": RANDOM["augment"], "gradient_accumulation": 2}  # drawn on the CPU for any device
    on_cpu, on_gpu = (losses(tmp_path / device, device=device, **mixed) for device in ("cpu", DEVICE))
    assert len(on_gpu) == STEPS
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


class Transfers(TorchFunctionMode):
    """Notes of each image batch that is moved to the device: whether it was pinned, and whether it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func is Tensor.to and args[0].dtype == torch.uint8 and made.device.type == DEVICE:
            self.seen.append((args[0].is_pinned(), not kwargs.get("non_blocking", False)))
        return made


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_from_pinned_memory_and_are_not_waited_for(workers: int, tmp_path: Path) -> None:
    trainer = prepared(tiny(tmp_path, **{"data.workers": workers}))
    with Transfers() as transfers:
        fit(trainer, tmp_path / "run")
    assert transfers.seen == [(True, False)] * (STEPS + 1)  # the last is the validation


@pytest.mark.parametrize("workers", [0, 2])
def test_what_arrives_is_what_was_read(workers: int, tmp_path: Path) -> None:
    """Batches that are let go of while their copies are under way, compared when all have arrived."""
    arrived: list[tuple[Tensor, Tensor]] = []
    expected: list[tuple[Tensor, Tensor]] = []
    for device, to in ((DEVICE, arrived), ("cpu", expected)):
        trainer = prepared(tiny(tmp_path, device=device, **{"data.workers": workers}))
        with batches(trainer.images, trainer.sampler, workers, device == DEVICE) as stream:
            for batch in stream:
                images, _, labels = trainer.to_device(batch)
                assert images.device.type == labels.device.type == device
                to.append((images, labels))
    assert len(arrived) == STEPS
    for got, wanted in zip(arrived, expected, strict=True):
        torch.testing.assert_close(got[0].cpu(), wanted[0])
        assert torch.equal(got[1].cpu(), wanted[1])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_and_resumed_is_the_same(precision: str, tmp_path: Path) -> None:
    """Every bit of weights, moving average, optimizer, metrics and report, with everything random switched on."""
    whole, cut = (tiny(tmp_path / name, precision=precision, epochs=2, **RANDOM) for name in ("whole", "cut"))
    expected = convnext.train(whole)
    stopped_at(STEPS + 3, cut)
    resumed = convnext.train(cut, resume=True)
    assert result(resumed.path) == result(expected.path)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_overflow_of_fp16_lowers_the_scale(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the scale that was found is kept with the run, which goes on where it stopped."""
    start = 2.0**24  # at which the gradient of the logits alone leaves fp16's range
    monkeypatch.setattr(GradScaler, "__init__", partialmethod(GradScaler.__init__, init_scale=start))
    changes = {"precision": "fp16", "epochs": 2, "optimizer.name": optimizer}
    whole, cut = (tiny(tmp_path / name, **changes) for name in ("whole", "cut"))
    expected = convnext.train(whole)
    stopped_at(STEPS + 3, cut)
    before = checkpoint.read_state(checkpoint.find(tmp_path / "cut" / "digits"))
    assert 0 < before.skipped_in_all < 10
    assert 1 < before.scaler["scale"] < start
    resumed = convnext.train(cut, resume=True)
    assert result(resumed.path) == result(expected.path)
    assert resumed.report.loss < 2.2  # chance is log(10) = 2.30


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("first", "then"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_a_run_goes_on_on_another_device(first: str, then: str, tmp_path: Path) -> None:
    """And ends where the run on one device does: weights, moving average and moments are taken over."""
    expected = convnext.train(tiny(tmp_path / "whole", device=then, ema_decay=0.9))
    cut = tiny(tmp_path / "cut", ema_decay=0.9)
    stopped_at(STEPS // 2, cut.replace(device=first))
    resumed = convnext.train(cut.replace(device=then), resume=True)
    assert resumed.path == tmp_path / "cut" / "digits"
    assert resumed.report.loss == pytest.approx(expected.report.loss, rel=1e-2)
    states = [checkpoint.read_state(checkpoint.find(run.path)) for run in (resumed, expected)]
    assert states[0].step == states[1].step == STEPS
    assert states[0].metrics["train_loss"] == pytest.approx(states[1].metrics["train_loss"], rel=1e-3)


@pytest.mark.usefixtures("exact")
def test_a_run_of_the_gpu_is_used_on_the_cpu(tmp_path: Path, digits_images: Path) -> None:
    run = convnext.train(tiny(tmp_path))
    here, there = (convnext.evaluate(run.path, device=device) for device in ("cpu", DEVICE))
    assert here.count == there.count == run.report.count == 360
    assert here.loss == pytest.approx(run.report.loss, rel=1e-4)
    assert there.loss == pytest.approx(run.report.loss, rel=1e-4)
    assert here.top1 == pytest.approx(run.report.top1, abs=1 / 360)
    image = sorted((digits_images / "test" / "3").iterdir())[0]
    on_cpu, on_gpu = (convnext.Predictor.load(run.path, device=device)(image, 10) for device in ("cpu", DEVICE))
    assert dict(on_gpu) == pytest.approx(dict(on_cpu), abs=1e-4)


def test_the_kernels_for_cpu_leave_the_gpu_alone() -> None:
    x, conv = torch.zeros(2, 8, 4, 4), torch.nn.Conv2d(8, 8, 7, padding=3, groups=8).to(DEVICE)
    assert not kernels.usable(x.to(DEVICE), conv)
    assert not kernels.usable(x, conv)


def test_auto_finds_how_much_fits_into_the_gpus_memory() -> None:
    device, shape, batch = torch.device(DEVICE), (3, 64, 64), 512
    model = create_model("convnext_tiny", 10, depths=(1, 1), dims=(16, 32), patch_size=2).to(device)
    assert micro_batches_that_fit(model, shape, batch, device, nullcontext) == 1
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 256 * 2**20) / total)
    try:
        parts = micro_batches_that_fit(model, shape, batch, device, nullcontext)
        assert 1 < parts <= 64
        torch.cuda.empty_cache()
        model(torch.zeros(-(-batch // parts), *shape, device=device)).square().mean().backward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
