"""Checkpoints: complete or absent, whatever happens while one is written."""

import json
import os
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convnext import create_model, recipe
from convnext.config import ModelSettings
from convnext.errors import CheckpointError
from convnext.models.registry import resolve
from convnext.runs import checkpoint
from convnext.runs.checkpoint import TrainingState
from convnext.storage.files import write_text
from convnext.training.optimizers import load_optimizers, make_optimizers, optimizer_tensors
from convnext.weights import loading
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
        run.mkdir()
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
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: it is not there"):
        checkpoint.load_model(checkpoint.find(tmp_path))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_what_is_not_as_it_was_written_is_not_used(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = checkpoint.find(tmp_path)
    whole = (folder / name).read_bytes()
    changed = whole.replace(b"cat", b"cow") if name == "model.json" else whole[:-1] + b"\1"
    for damaged in (changed, whole[: len(whole) // 2], b""):
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{name} is damaged: its SHA-256 is not the one in sha256.json"):
            checkpoint.load_model(folder)
    # Without digests, such as in a folder of the two files alone, they are used as far as they can be read.
    (folder / "sha256.json").unlink()
    with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
        checkpoint.load_model(folder)
    (folder / name).write_bytes(changed)
    assert len(checkpoint.load_model(folder)[1].classes) == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_size": -8}, "image_size: Input should be greater than or equal to 1"),
        ({"center_crop": 0}, "center_crop: Input should be greater than 0"),
        ({"std": [0.2, 0.2, -0.2]}, r"std\.2: Input should be greater than 0"),
        ({"mean": [0.5]}, "mean, std and model.in_channels are of 1, 3 channels"),
        ({"mean": []}, "mean: Tuple should have at least 1 item"),
        ({"classes": []}, "classes: Tuple should have at least 1 item"),
        ({"classes": "cat"}, "classes: Input should be a valid tuple"),
        ({"classes": ["cat", "dog", "cow"]}, r"does not fit the model: head.bias is \(2,\), not \(3,\)"),
        ({"model": INFO.model.model_dump() | {"dims": [8, -16]}}, "model.dims: input should be greater"),
        ({"model": INFO.model.model_dump() | {"dims": [8, 10**6]}}, "does not fit the model"),
        ({"model": INFO.model.model_dump() | {"dims": [8, 10**9]}}, "no model can have these settings: Storage size"),
        ({"model": []}, "model: Input should be a valid dictionary"),
    ],
)
def test_a_description_that_cannot_be_is_one_line(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = checkpoint.find(tmp_path)
    (folder / "sha256.json").unlink()
    values = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        checkpoint.load_model(folder)
    assert "\n" not in str(caught.value)


def test_only_folders_of_the_exact_form_are_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    last = folder / "step-00000001"
    names = ["step-00000004-backup", "step-15", "step-000000009", "step-00000009-1", "step-٠٠٠٠٠٠٠٩", "step-", "step-x"]
    for name in [*names, ".step-00000001.bak", ".step-backup.tmp"]:
        shutil.copytree(last, folder / name)
    for name in ["step-15.zip", "step-00000003", ".step-00000002.tmp", ".step-00000005"]:
        (folder / name).write_text("a file")
    (folder / "step-00000007").symlink_to(last.name)
    (folder / "step-00000002").symlink_to("nowhere")
    before = set(folder.iterdir())
    assert checkpoint.newest_complete(tmp_path) == last
    for step in (2, 3):
        save(tmp_path, step)
        assert checkpoint.newest_complete(tmp_path) == checkpoint.find(tmp_path).resolve()
        assert stored_step(tmp_path) == step
    assert {path.name for path in before ^ set(folder.iterdir())} == {last.name, "step-00000002-2", "step-00000003-2"}


def test_links_that_became_folders_where_a_run_was_copied(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", 1, best_step=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # follows links
    save(tmp_path / "copy", 2, best_step=2)
    assert stored_step(tmp_path / "copy") == stored_step(tmp_path / "copy", "best") == 2
    names = {path.name for path in (tmp_path / "copy" / "checkpoints").iterdir()}
    assert names == {"last", "best", "copied-last", "copied-best", "step-00000001", "step-00000002"}


def test_a_run_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        save(tmp_path / "gone", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_says(umask: int, expected: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "run").mkdir()
        save(tmp_path / "run", 1)
        write_text(tmp_path / "text", "words")
        loading.write({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
        loading.write({"x": torch.zeros(1)}, tmp_path / "weights.pth")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {expected}


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
    if name == "adamw":
        del saved["optimizer.norm.weight.exp_avg"]
        with pytest.raises(CheckpointError, match="lacks some of the optimizer's state"):
            load_optimizers(other, make_optimizers(other, settings), saved)
    with pytest.raises(CheckpointError, match="optimizer of another model"):
        load_optimizers(create_model("convnext_tiny", 2, depths=(1,), dims=(4,)), second, saved)
