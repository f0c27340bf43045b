"""How much memory there is, how much of a batch fits into it, and what is said where it runs out."""

import multiprocessing
import resource
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import convnext
from convnext import create_model, recipe
from convnext.evaluation.evaluator import compute_logits
from convnext.training.faults import no_memory
from convnext.training.memory import available, images_to_evaluate, micro_batches_that_fit
from tests.support.killing import TINY, Started, last_line, result


def limit_memory(megabytes: int) -> None:
    """Let this process have that much more memory than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)


def test_memory_that_runs_out_says_what_to_lower(tmp_path: Path) -> None:
    large = ("--model.dims", 64, 128, "--data.image-size", 64, "--model.patch-size", 1, "--batch-size", 256)
    error = last_line(Started([*TINY, *large], tmp_path, partial(limit_memory, 500)).end())
    assert error.startswith("convnext: memory ran out: ")
    advices = "--gradient-accumulation (now 2)", "--checkpoint-activations", "batch_size (256)", "data.image_size (64)"
    for advice in advices:
        assert advice in error


def try_parts(megabytes: int, count: int, image_size: int) -> None:
    """End with status 2 if a forward and backward pass of so many images fits into so much memory, with 1 if not, with
    3 for another error."""
    torch.set_num_threads(1)
    model = small_model()
    _pass(model, 1, image_size)  # what is loaded at the first pass does not count
    limit_memory(megabytes)
    try:
        _pass(model, count, image_size)
    except (RuntimeError, MemoryError) as error:
        print(repr(error), file=sys.stderr)
        sys.exit(1 if no_memory(error) else 3)
    sys.exit(2)


def small_model() -> torch.nn.Module:
    return create_model("convnext_tiny", 10, depths=(1, 1), dims=(16, 32), patch_size=2)


def _pass(model: torch.nn.Module, count: int, image_size: int) -> None:
    model(torch.zeros(count, 3, image_size, image_size)).square().mean().backward()


def free_memory(monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
    # What the kernel says cannot be changed by a test.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(megabytes * 2**20)))


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_a_container_count(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 1000)
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    root = groups if version == 2 else groups / "memory"
    files = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    own.write_text("0::/a/b\n" if version == 2 else "5:cpu,cpuacct:/\n4:memory:/a/b\n")

    def limit(group: str, most: str, used: int) -> float:
        (root / group).mkdir(parents=True, exist_ok=True)
        for name, text in zip(files, (most, str(used * 2**20)), strict=True):
            (root / group / name).write_text(text + "\n")
        dropped = f"{'total_' * (version == 1)}inactive_file {20 * 2**20}\n"
        (root / group / "memory.stat").write_text(f"anon 5\n{dropped}")
        return available(groups, own) / 2**20

    assert available(groups, tmp_path / "none") == 1000 * 2**20
    assert available(groups, own) == 1000 * 2**20
    assert limit("", "max" if version == 2 else str(2**63 - 4096), 900) == 1000
    assert limit("a", str(500 * 2**20), 120) == 400
    assert limit("a/b", str(300 * 2**20), 50) == 270
    assert limit("a", str(100 * 2**20), 130) == 0


def test_auto_splits_a_batch_so_that_it_fits_into_real_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    megabytes, size, batch = 300, 64, 800
    free_memory(monkeypatch, megabytes)
    device = torch.device("cpu")
    parts = micro_batches_that_fit(small_model(), (3, size, size), batch, device, nullcontext)
    assert 1 < parts <= 64
    context = multiprocessing.get_context("forkserver")
    ended = []
    for count in (-(-batch // parts), batch):
        process = context.Process(target=try_parts, args=(megabytes, count, size))
        process.start()
        process.join()
        ended.append(process.exitcode)
    assert ended == [2, 1]


def test_auto_is_the_same_as_the_number_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"depths": (1, 1), "dims": (8, 16), "patch_size": 2, "stochastic_depth": 0.2}
    settings = recipe("digits", epochs=1, batch_size=128, model=model, trackers=(), gradient_accumulation="auto")
    settings = settings.replace(**{"data.augment_on": "workers"})  # which is chosen by the free memory, too
    free_memory(monkeypatch, 0.3)
    automatic = convnext.train(settings.replace(output=tmp_path / "auto"))
    parts = automatic.settings.gradient_accumulation
    assert isinstance(parts, int)
    assert 1 < parts < 128
    free_memory(monkeypatch, 10_000)
    told = convnext.train(settings.replace(output=tmp_path / "told", gradient_accumulation=parts))
    assert result(told.path) == result(automatic.path)
    # Plenty of memory now, but the run goes on as it began.
    assert (
        convnext.train(settings.replace(output=tmp_path / "auto"), resume=True).settings.gradient_accumulation == parts
    )
    shutil.rmtree(automatic.path / "checkpoints")
    again = convnext.train(settings.replace(output=tmp_path / "auto"), resume=True)
    assert again.settings.gradient_accumulation == parts
    assert result(again.path) == result(told.path)


def test_auto_leaves_batch_norms_buffers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 1000)
    model = create_model("resnet18", 10)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert micro_batches_that_fit(model, (3, 32, 32), 64, torch.device("cpu"), nullcontext) >= 1
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_memory_for_one_image_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 0)
    with pytest.raises(convnext.UserError, match="not even one image fits into memory"):
        convnext.train(recipe("digits", output=tmp_path, gradient_accumulation="auto"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 8.50 GB, other allocations: 384.00 KB, max allowed: 9.07 GB).",
        "Invalid buffer size: 13.57 GB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
        "HIP error: out of memory",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_what_devices_say_where_memory_runs_out(message: str) -> None:
    assert no_memory(RuntimeError(message))


def test_another_error_is_not_memory_that_ran_out() -> None:
    assert not no_memory(RuntimeError("CUDA error: device-side assert triggered"))


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "processes", "images"),
    [
        (4096, 1, 1, 256),
        (32, 1, 1, 256),
        (128, 4, 1, 256),
        (16, 1, 1, 128),
        (64, 64, 1, 8),
        (64, 8, 4, 16),
        (3, 2, 4, 8),
    ],
)
def test_evaluation_takes_no_more_memory_than_a_micro_batch(
    batch_size: int, micro_batches: int, processes: int, images: int
) -> None:
    settings = recipe("digits", batch_size=batch_size, gradient_accumulation=micro_batches)
    assert images_to_evaluate(settings, processes) == images


def test_a_run_evaluates_as_many_images_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()

    def noted(*args: Any, batch_size: int, **options: Any) -> Any:
        sizes.add(batch_size)
        return compute_logits(*args, batch_size=batch_size, **options)

    monkeypatch.setattr("convnext.training.trainer.compute_logits", noted)
    model = {"depths": (1, 1), "dims": (4, 8)}
    settings = recipe("digits", epochs=1, output=tmp_path, gradient_accumulation=16, model=model, trackers=())
    run = convnext.train(settings)  # micro-batches of four
    assert sizes == {32}
    assert run.report.count == 360
    assert convnext.evaluate(run.path).loss == pytest.approx(run.report.loss, rel=1e-5)
