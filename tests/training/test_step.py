"""A step whose device decides about the update: it computes what the host's decision gives, and nobody waits for it."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import convnext
from convnext.data.datasets.load import load_splits
from convnext.data.loading.loader import Batch, batches
from convnext.devices import make_accelerator
from convnext.errors import UserError
from convnext.training import step as step_module
from convnext.training import trainer as trainer_module
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.optimizers import optimizer_tensors
from convnext.training.resolve import resolve_settings
from convnext.training.step import Numbers, Stepper
from convnext.training.trainer import Trainer
from tests.support.killing import result
from tests.support.waiting import Waits

CONVNEXT = {"depths": (1, 1), "dims": (8, 16), "patch_size": 2, "stochastic_depth": 0.2}
BATCH_NORM = {"name": "roadmap", "step": 0, "depths": (1,) * 4, "dims": (4, 8, 8, 8), "patch_size": 4}


def settings(output: Path, model: dict[str, Any] = CONVNEXT, **changes: Any) -> convnext.RunSettings:
    """Two epochs of 5 steps, with a moving average and clipped gradients."""
    small: convnext.RunSettings = convnext.recipe(
        "digits",
        epochs=2,
        batch_size=256,
        output=output,
        device="cpu",
        precision="fp32",
        ema_decay=0.9,
        model=model,
        data={"workers": 0, "image_size": 32 if model is BATCH_NORM else 8},
        trackers=(),
        **{"optimizer.clip_norm": 1.0, "optimizer.lr": 0.005},
    ).replace(**changes)
    return small


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is treated as CUDA is."""
    monkeypatch.setattr(trainer_module, "decides_on_device", lambda _: True)


class Spoiled(Trainer):
    """A run with images that are not finite in some steps."""

    spoiled: tuple[int, ...] = (1, 4, 5)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        images, targets, labels = super().to_device(batch)
        if self.state.step in self.spoiled:
            images[0, 0, 0, 0] = torch.nan
        return images, targets, labels


def prepared(kind: type[Trainer], chosen: convnext.RunSettings) -> Trainer:
    accelerator = make_accelerator(chosen)
    resolved, splits = resolve_settings(chosen, load_splits(chosen.data), accelerator)
    return kind(resolved, splits, accelerator)


def steps(trainer: Trainer, count: int = 8) -> dict[str, Tensor]:
    """Everything that so many steps changed."""
    trainer.model.train()
    trainer.display.line = print  # type: ignore[method-assign, assignment]
    with batches(trainer.images, trainer.sampler, 0) as stream, StopSignals(trainer.folder) as signals:
        for _, batch in zip(range(count), stream, strict=False):
            trainer.step(batch, signals)
    trainer.catch_up()
    average = trainer.average
    assert average is not None
    return (
        trainer.raw_model.state_dict()
        | {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
        | optimizer_tensors(trainer.raw_model, trainer.optimizers)
    )


@pytest.mark.parametrize(
    ("model", "optimizer"), [(CONVNEXT, "adamw"), (CONVNEXT, "sgd"), (CONVNEXT, "muon"), (BATCH_NORM, "sgd")]
)
def test_the_device_decides_as_the_host_does(
    model: dict[str, Any],
    optimizer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """About the first step, too, before which an optimizer has no state."""
    chosen = settings(tmp_path, model, **{"optimizer.name": optimizer})
    found, said, states = [], [], []
    for on_device in (False, True):
        monkeypatch.setattr(trainer_module, "decides_on_device", lambda _, value=on_device: value)
        trainer = prepared(Spoiled, chosen)
        found.append(steps(trainer))
        said.append(capsys.readouterr().out.splitlines())
        states.append(trainer.state)
    assert said[0] == said[1] == [f"skipped step {n}: numbers that are not finite in the images" for n in (1, 4, 5)]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, msg=name)
    assert int(found[1]["average.n_averaged"]) == 5
    for state in states:
        assert (state.step, state.skipped, state.skipped_in_all, state.images) == (8, 0, 3, 5 * 256)
    assert (states[0].loss_sum, states[0].correct) == pytest.approx((states[1].loss_sum, states[1].correct))


@pytest.mark.parametrize("mix_by", ["batch", "element"])
def test_nothing_is_mixed_in_the_steps_after_mix_until(mix_by: str, tmp_path: Path) -> None:
    mixed: list[bool] = []

    class Noting(Trainer):
        def to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            images, targets, labels = super().to_device(batch)
            mixed.append(targets.ndim == 2)
            assert mixed[-1] == (not torch.equal(images, self.normalize(batch.images)))
            return images, targets, labels

    augment = {"mixup": 0.8, "mix_by": mix_by, "mix_until": 0.6}
    steps(prepared(Noting, settings(tmp_path, augment=augment)), 10)
    assert mixed == [True] * 6 + [False] * 4


@contextmanager
def unread() -> Iterator[None]:
    """Nobody may look at the numbers of a tensor."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a number is read")

    names = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__array__")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(Tensor, name, refuse)
        yield


def test_the_guards_notice() -> None:
    looks: list[Callable[[Tensor], object]] = [bool, float, int, [1].__getitem__, lambda x: x.item(), lambda x: x.cpu()]
    for look in looks:
        with pytest.raises(AssertionError, match="is read"), unread():
            look(torch.zeros((), dtype=torch.int64))
    moves: list[Callable[[Tensor], object]] = [lambda x: x.to("meta"), lambda x: x.new_empty(2, device="meta").copy_(x)]
    for move in moves:
        with pytest.raises(AssertionError, match="waits"), Waits():  # type: ignore[no-untyped-call]
            move(torch.zeros(2))
    with Waits():  # type: ignore[no-untyped-call]
        torch.zeros(2).to("meta", non_blocking=True)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_no_number_is_read_within_a_step(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, forward = Stepper.take, Trainer.to_device
    calls = []

    def guarded(what: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(what)
            with unread():
                return what(*args)

        return call

    monkeypatch.setattr(Stepper, "take", guarded(take))
    monkeypatch.setattr(Trainer, "to_device", guarded(forward))
    weighted: dict[str, Any] = {
        "loss.class_weights": "balanced",
        "gradient_accumulation": 2,
        "optimizer.name": optimizer,
    }
    trainer = prepared(Trainer, settings(tmp_path, **weighted))
    steps(trainer, 3)
    assert len(calls) == 6
    assert trainer.state.images == 3 * 256


class Unread:
    """Numbers that stay on a device which has none."""

    def __init__(self, numbers: Tensor) -> None:
        assert numbers.is_meta
        self.count = len(numbers)

    def read(self) -> list[float]:
        return [1.0] * self.count


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("mix_by", ["batch", "element"])
@pytest.mark.parametrize(("model", "optimizer"), [(CONVNEXT, "adamw"), (CONVNEXT, "muon"), (BATCH_NORM, "adamw")])
def test_a_step_needs_no_number_of_its_device(
    model: dict[str, Any], optimizer: str, mix_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without numbers, where what the host draws comes from the host."""
    for name in ("adam", "sgd"):  # has the kernels for this device, and does not list it
        monkeypatch.setattr(sys.modules[f"torch.optim.{name}"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    mixed = {"mixup": 0.8, "cutmix": 1.0, "mix_by": mix_by, "mix_probability": 0.7}
    chosen = settings(tmp_path, model, augment=mixed, **{"optimizer.name": optimizer, "loss.class_weights": "balanced"})
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    monkeypatch.setattr(step_module, "Numbers", Unread)
    monkeypatch.setattr(trainer_module, "prepare_model", lambda model, _: model)  # autocast does not know the device
    trainer = prepared(Trainer, chosen)
    with Waits():  # type: ignore[no-untyped-call]
        steps(trainer, 6)
    assert trainer.state.images == 6 * 256


@pytest.mark.usefixtures("on_device")
def test_a_run_that_stops_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is random, checkpoints within an epoch, and a step that is left out right before the stop."""
    monkeypatch.setattr("convnext.training.train.Trainer", Spoiled)
    random = {"mixup": 0.8, "cutmix": 1.0, "policy": "randaugment"}
    whole, cut = (settings(tmp_path / name, augment=random, save_every_steps=2) for name in ("whole", "cut"))
    expected = convnext.train(whole)
    step = Trainer.step

    def with_signal(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if trainer.state.step in (3, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch, signals)

    for stopped_at in (4, 8):
        with monkeypatch.context() as patch:
            patch.setattr(Spoiled, "step", with_signal)
            with pytest.raises(InterruptedRunError):
                convnext.train(cut, resume=True)
        assert (tmp_path / "cut/digits/checkpoints/last").resolve().name == f"step-{stopped_at:08d}"
    resumed = convnext.train(cut, resume=True)
    assert result(resumed.path) == result(expected.path)
    assert result(resumed.path)["last skipped_in_all"] == 3


@pytest.mark.usefixtures("on_device")
def test_too_many_skipped_steps_end_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of which the last checkpoint is from before; where the gradient alone overflows, its parameter is named."""

    class Bad(Spoiled):
        spoiled = ()

        def step(self, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
            if self.state.step == 3:
                bias = self.raw_model.get_parameter("head.bias")
                bias.register_hook(lambda grad: grad * torch.inf)  # type: ignore[no-untyped-call]
            return super().step(batch, signals)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convnext.training.train.Trainer", Bad)
        message = r"in 2 steps in a row, up to step 5, first in the gradient of head\.bias: lower optimizer\.lr"
        with pytest.raises(UserError, match=message):
            convnext.train(settings(tmp_path, save_every_steps=3, max_skipped_steps=1))
    assert re.findall(r"skipped step (\d)", capfd.readouterr().err) == ["4", "5"]
    assert (tmp_path / "digits/checkpoints/last").resolve().name == "step-00000003"


def test_each_size_is_compiled_once_and_a_short_batch_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        shapes.extend((len(tensor), tensor.shape[-1]) for tensor in inputs if len(tensor) >= 250)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    growing: dict[str, Any] = {"data.image_size": 16, "data.start_size": 8, "epochs": 7, "model.stochastic_depth": 0.0}
    states = []
    for compile in (False, True):
        trainer = prepared(Trainer, settings(tmp_path, **growing, compile=compile))
        with batches(trainer.images, trainer.sampler, 0) as stream, StopSignals(trainer.folder) as signals:
            for number, batch in enumerate(stream):
                cut = 250 if number in (3, 30) else 256  # six images could not be read
                trainer.step(Batch(batch.images[:cut], batch.targets[:cut], batch.indices[:cut], []), signals)
        states.append(trainer.state)
    assert shapes == [(256, size) for size in (8, 10, 12, 14, 16)]
    assert states[0].images == states[1].images == 35 * 256 - 12
    assert states[0].loss_sum == pytest.approx(states[1].loss_sum, rel=1e-4)


def test_numbers_arrive() -> None:
    assert Numbers(torch.tensor([1.0, 2.0])).read() == [1, 2]
