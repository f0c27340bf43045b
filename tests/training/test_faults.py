"""Faults for real: numbers that are not finite, disks that end, processes that die, files that are damaged.

Each ends with status 2 and one line that says what to do, or the run goes on; nothing that was saved is lost.
"""

import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file

from convnext.runs import checkpoint
from convnext.runs.folder import read_metrics
from tests.support.holding import Held
from tests.support.killing import STEPS, STEPS_PER_EPOCH, TINY, Point, Started, last_line, result, run, steps

RUN = Path("runs") / "digits"


def folder_args(root: Path) -> tuple[object, ...]:
    """`TINY` on the images of a folder, 12 steps an epoch, without a first look at all of them."""
    data = (
        "--data.name",
        "folder",
        "--data.root",
        root,
        "--data.image-size",
        8,
        "--batch-size",
        5,
        "--data.val-fraction",
        0,
    )
    return (*TINY, *data, "--data.mean", *[0.5] * 3, "--data.std", *[0.3] * 3)


YELLOW = ("--data.mean", 0.5, 0.5, 0, "--data.std", 0.3, 0.3, 1e-40, "--augment.policy", "none")
"""Settings for images without blue: its mean is 0, and its standard deviation next to nothing."""


def make_yellow(root: Path) -> None:
    """Take the blue out of all images."""
    for path in root.rglob("*.png"):
        pixels = np.array(Image.open(path).convert("RGB"))
        pixels[..., 2] = 0
        Image.fromarray(pixels).save(path)


def make_blue(path: Path) -> None:
    """An image which normalization by that standard deviation makes infinite."""
    Image.new("RGB", (8, 8), "blue").save(path)


def weights_are_finite(run: Path) -> bool:
    files = list((run / "checkpoints").glob("step-*/*.safetensors"))
    return bool(files) and all(bool(x.isfinite().all()) for file in files for x in load_file(file).values())


def test_a_learning_rate_that_is_too_high_stops_with_advice(tmp_path: Path) -> None:
    rate = ("--optimizer.lr", "1e12", "--optimizer.warmup-epochs", 0, "--max-skipped-steps", 3)
    ended = run([*TINY, *rate, "--save-every-steps", 1, "--keep", 2], tmp_path)
    error = last_line(ended)
    skipped = [int(step) for step in re.findall(r"skipped step (\d+): numbers that are not finite in", ended.text)]
    assert len(skipped) == 4
    assert skipped == list(range(skipped[0], skipped[0] + 4))
    where = r"(layer|weight|the gradient of) (downsample_layers|stages|norm|head)[\w.]*"
    assert re.search(rf"in 4 steps in a row, up to step {skipped[-1]}, first in .*{where}: lower optimizer\.lr", error)
    assert "now 2e+12 at its peak" in error
    # Checkpoints of steps that were left out would have pushed out those from before.
    assert steps(tmp_path / RUN)[-1] == skipped[0] - 1
    assert weights_are_finite(tmp_path / RUN)
    weights = re.search(r"--model\.weights (\S+)", error)
    assert weights
    assert load_file(weights[1])
    assert f"step-{skipped[0] - 1:08d}" in weights[1]
    # What the advice calls for a new run is refused by the old one, and that more steps may be skipped is not.
    assert "optimizer.lr was" in last_line(run([*TINY, *rate[2:], "--resume"], tmp_path))
    error = last_line(run([*TINY, *rate[:-1], 5, "--resume"], tmp_path))
    assert "in 6 steps in a row" in error


def test_an_error_before_the_first_checkpoint_promises_none(tmp_path: Path) -> None:
    rate = ("--optimizer.lr", "1e12", "--optimizer.warmup-epochs", 0, "--max-skipped-steps", 0)
    assert "no checkpoint" in last_line(run([*TINY, *rate], tmp_path))
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("model", ["convnext", "batch-norm"])
def test_a_step_that_is_not_finite_is_left_out(model: str, small_folder: Path, tmp_path: Path) -> None:
    """One image spoils one step an epoch, and leaves no trace in weights, moving average or batch norm's buffers."""
    make_yellow(small_folder)
    make_blue(min((small_folder / "train" / "1").iterdir()))
    args = (*folder_args(small_folder), *YELLOW)
    if model == "batch-norm":
        args += ("--model.name", "roadmap", "--model.step", 0, "--model.depths", *[1] * 4, "--model.dims", 4, 8, 8, 8)
        args += ("--model.patch-size", 4, "--model.stochastic-depth", 0, "--data.image-size", 32)
    ended = run(args, tmp_path)
    assert ended.status == 0, ended.text
    assert ended.text.count("not finite in the images") == 2
    assert weights_are_finite(tmp_path / RUN)
    whole = result(tmp_path / RUN)
    assert whole["last skipped_in_all"] == 2
    assert np.isfinite(whole["report"]["loss"])
    bad_step = int(re.findall(r"skipped step (\d+)", ended.text)[1])
    args += ("--output", "again", "--save-every-steps", 1)
    assert run(args, tmp_path, Point(bad_step, disk=1)).status == -signal.SIGKILL
    assert run([*args, "--resume"], tmp_path).status == 0
    assert result(tmp_path / "again" / "digits") == whole


def test_a_validation_loss_that_is_not_finite_can_be_resumed_from(small_folder: Path, tmp_path: Path) -> None:
    make_yellow(small_folder)
    shutil.copytree(small_folder / "test", small_folder / "val")
    make_blue(small_folder / "val" / "1" / "blue.png")
    args = (*folder_args(small_folder), *YELLOW)
    ended = run(args, tmp_path / "whole")
    assert ended.status == 0, ended.text
    whole = result(tmp_path / "whole" / RUN)
    assert not np.isfinite(float(whole["metrics"][0]["val_loss"]))
    assert run(args, tmp_path, Point(15)).status == -signal.SIGKILL
    resumed = run([*args, "--resume"], tmp_path)
    assert resumed.status == 0, resumed.text
    assert result(tmp_path / RUN) == whole


def reader_of(held: Held, started: Started) -> int:
    """The data worker, started last, that waits for the file."""
    while not held.is_wanted():
        assert started.process.is_alive(), started.end().text
        started.process.join(0.05)
    children = psutil.Process(started.process.pid).children()
    workers = [child for child in children if child.name() == "pt_data_worker"]
    return int(max(workers, key=lambda worker: worker.create_time()).pid)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_data_worker_that_dies_names_the_file(part: str, small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(small_folder / "test", small_folder / "val")
    path = small_folder / part / "1" / "held.png"
    make_blue(path)
    with Held(path) as held:
        started = Started([*folder_args(small_folder), "--epochs", 1, "--data.workers", 1], tmp_path)
        try:
            os.kill(reader_of(held, started), signal.SIGKILL)
            error = last_line(started.end())
        finally:
            started.process.kill()
    assert "a process that reads images died" in error
    assert str(path) in error
    assert "--data.exclude" in error


def test_a_data_worker_that_hangs_does_not_keep_a_dead_run_locked(small_folder: Path, tmp_path: Path) -> None:
    path = small_folder / "train" / "1" / "held.png"
    make_blue(path)
    args = [*folder_args(small_folder), "--data.workers", 1]
    with Held(path) as held:
        started = Started(args, tmp_path)
        worker = reader_of(held, started)
        try:
            started.process.kill()
            assert started.end().status == -signal.SIGKILL
            path.unlink()
            make_blue(path)
            resumed = run([*args, "--data.workers", 0, "--resume"], tmp_path)
            assert resumed.status == 0, resumed.text
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def test_a_damaged_image_is_named(small_folder: Path, tmp_path: Path) -> None:
    damaged = small_folder / "train" / "2" / "damaged.png"
    damaged.write_bytes(next((small_folder / "train" / "2").iterdir()).read_bytes()[:40])
    args = [*folder_args(small_folder), "--epochs", 1, "--data.workers", 2]
    error = last_line(run([*args, "--data.strict"], tmp_path))
    assert str(damaged) in error
    assert "without --data.strict" in error
    ended = run(args, tmp_path)
    assert ended.status == 0
    assert f"left out: {damaged}" in ended.text


LARGER = ("--model.dims", 64, 128, "--model.patch-size", 4, "--save-every-steps", 2, "--keep", 20)
"""Checkpoints of 3 MB."""


def in_small_file_system(folder: Path, scenario: Callable[[Path], None]) -> None:
    """Call ``scenario`` in a file system of 20 MB at ``folder``, which this process alone sees; status 77 where that is
    not permitted."""
    clone_newns = 0x00020000
    if ctypes.CDLL(None).unshare(clone_newns):
        sys.exit(77)
    for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=20m", "none", str(folder)]):
        if subprocess.run(["mount", *command], capture_output=True).returncode:
            sys.exit(77)
    with (folder.parent / "errors.txt").open("w") as file:
        os.dup2(file.fileno(), 2)
    scenario(folder)


def on_a_small_disk(folder: Path, scenario: Callable[[Path], None]) -> None:
    folder.mkdir()
    process = multiprocessing.get_context("forkserver").Process(target=in_small_file_system, args=(folder, scenario))
    process.start()
    process.join()
    if process.exitcode == 77:
        pytest.skip("this process may not mount a file system")
    assert process.exitcode == 0, (folder.parent / "errors.txt").read_text()


def fill(path: Path) -> None:
    """Write until the disk is full to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def save_until_it_is_full(disk: Path) -> None:
    end = partial(Started, folder=disk, method="fork")
    error = last_line(end([*TINY, *LARGER, "--trackers", "tensorboard"]).end())
    assert re.search(
        r"cannot write checkpoint .*step-\d+: .*[Nn]o space left on device.*the one before is untouched", error
    )
    folder = disk / RUN / "checkpoints"
    kept = steps(disk / RUN)
    assert 2 < len(kept) < STEPS // 2
    assert all(checkpoint.is_complete(path) for path in folder.glob("step-*"))
    assert checkpoint.find(disk / RUN).resolve().name == f"step-{kept[-1]:08d}"
    assert not list(folder.glob(".*"))
    for _ in range(2):  # once with room for small files, once with none
        error = last_line(end([*TINY, *LARGER, "--resume"]).end())
        assert "o space left on device" in error
        assert str(RUN) in error
        assert steps(disk / RUN) == kept
        assert all(checkpoint.is_complete(path) for path in folder.glob("step-*"))
        fill(disk / "other")
    (disk / "other").unlink()
    for step in kept[:3]:
        shutil.rmtree(folder / f"step-{step:08d}")
    ended = end([*TINY, *LARGER, "--keep", 1, "--resume"]).end()
    assert ended.status == 0, ended.text
    assert result(disk / RUN) == result(disk.parent / "whole" / RUN)


def fill_before_metrics_are_written(disk: Path) -> None:
    point = Point(STEPS_PER_EPOCH, disk=1, signal=signal.SIGSTOP)
    started = Started([*TINY, *LARGER, "--keep", 1], disk, point.arm, method="fork")
    assert started.process.pid is not None
    _, status = os.waitpid(started.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    fill(disk / "other")
    os.kill(started.process.pid, signal.SIGCONT)
    error = last_line(started.end())
    assert "o space left on device" in error
    assert "metrics.jsonl" in error
    assert steps(disk / RUN) == [STEPS_PER_EPOCH - 2]
    (disk / "other").unlink()
    ended = Started([*TINY, *LARGER, "--keep", 1, "--resume"], disk, method="fork").end()
    assert ended.status == 0, ended.text
    assert len(read_metrics(disk / RUN)) == 2
    assert result(disk / RUN) == result(disk.parent / "whole" / RUN)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    assert run([*TINY, *LARGER], tmp_path / "whole").status == 0
    on_a_small_disk(tmp_path / "disk", save_until_it_is_full)
    on_a_small_disk(tmp_path / "other", fill_before_metrics_are_written)
