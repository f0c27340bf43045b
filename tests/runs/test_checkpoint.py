"""Checkpoints: complete or absent, whatever happens while one is written."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from convnext import create_model, recipe
from convnext.config import ModelSettings
from convnext.errors import CheckpointError
from convnext.models.registry import resolve
from convnext.runs import checkpoint
from convnext.runs.checkpoint import TrainingState
from convnext.training.optimizers import load_optimizers, make_optimizers, optimizer_tensors
from convnext.weights.model_info import ModelInfo, read_json

SHAPE = ModelSettings(depths=(1, 1), dims=(8, 16), patch_size=2)
INFO = ModelInfo(
    model=resolve(SHAPE), classes=("cat", "dog"), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=16, center_crop=1.0
)


def small_model(fill: float) -> nn.Module:
    model = create_model("convnext_tiny", 2, depths=(1, 1), dims=(8, 16), patch_size=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    return model


def save(folder: Path, step: int, best_step: int | None = None) -> None:
    state = TrainingState(settings=recipe("digits"), step=step, best_step=best_step)
    checkpoint.save(folder / "checkpoints", small_model(step).state_dict(), INFO, {"x": torch.tensor(step)}, state)


def stored_step(run: Path, name: str = "last") -> int:
    """Load a checkpoint completely, check that its parts belong together, and give its step."""
    folder = checkpoint.find(run, name)
    model, info = checkpoint.load_model(folder)
    assert info == INFO
    state: TrainingState = read_json(folder / "training.json", TrainingState)
    assert all(parameter.eq(state.step).all() for parameter in model.parameters())
    assert checkpoint.read_tensors(folder / "training.safetensors")["x"].item() == state.step
    return state.step


def test_last_and_best_are_kept_and_others_removed(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(tmp_path, step, best)
    assert stored_step(tmp_path) == 4
    assert stored_step(tmp_path, "best") == 2
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last", "best", "step-00000002", "step-00000003", "step-00000004"}


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1)
    assert stored_step(tmp_path) == 1
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1


def test_killed_anywhere_in_a_save(tmp_path: Path) -> None:
    """A child process is killed for real at each of the points at which a save reaches the disk."""
    killed = True
    point = 0
    while killed:
        run = tmp_path / str(point)
        save(run, 1, best_step=1)
        child = os.fork()
        if child == 0:
            kill_at_sync(point)
            save(run, 2, best_step=2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        last, best = stored_step(run), stored_step(run, "best")
        assert last in (1, 2)
        assert best in (1, 2)
        if not killed:
            assert last == best == 2
        save(run, 3, best_step=3)
        assert stored_step(run) == stored_step(run, "best") == 3
        assert {path.name for path in (run / "checkpoints").iterdir()} <= {
            *("last", "best", "step-00000001", "step-00000002", "step-00000003")
        }
        point += 1
    assert point > 6


def kill_at_sync(point: int) -> None:
    fsync, calls = os.fsync, iter(range(1_000_000))

    def fsync_or_die(descriptor: int) -> None:
        if next(calls) == point:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die  # type: ignore[assignment]


def test_missing_and_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        checkpoint.find(tmp_path)
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no checkpoint 'best'; it has: last"):
        checkpoint.find(tmp_path, "best")
    weights = checkpoint.find(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        checkpoint.load_model(checkpoint.find(tmp_path))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: it is not there"):
        checkpoint.load_model(checkpoint.find(tmp_path))
    (checkpoint.find(tmp_path) / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.json"):
        checkpoint.load_model(checkpoint.find(tmp_path))


def test_weights_of_another_model_are_listed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = create_model("convnext_tiny", 5, depths=(2, 1), dims=(8, 16), patch_size=2)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .* and \d+ more"):
        checkpoint.load_model(checkpoint.find(tmp_path), other)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_optimizer_state_survives_in_the_parameters_memory_format(name: str) -> None:
    torch.manual_seed(0)
    shape = {"depths": (1, 1), "dims": (8, 16), "patch_size": 2}
    one, other = (create_model("convnext_tiny", 2, **shape).to(memory_format=torch.channels_last) for _ in range(2))
    settings = recipe("digits").optimizer.replace(name=name)
    first, second = (make_optimizers(model, settings) for model in (one, other))
    one(torch.randn(4, 3, 8, 8)).square().sum().backward()
    for optimizer in first:
        optimizer.step()
    saved = {key: value.contiguous() for key, value in optimizer_tensors(one, first).items()}
    assert saved
    load_optimizers(other, second, saved)
    restored = optimizer_tensors(other, second)
    assert restored.keys() == saved.keys()
    for key, value in optimizer_tensors(one, first).items():
        assert torch.equal(value, restored[key])
        assert value.stride() == restored[key].stride()
    with pytest.raises(CheckpointError, match="optimizer of another model"):
        load_optimizers(create_model("convnext_tiny", 2, depths=(1,), dims=(4,)), second, saved)
