"""Runs whose training images lie on the device: exact after any interruption, and refused where they cannot."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convnext import recipe
from convnext.config import RunSettings
from convnext.data.cache.source import open_cache
from convnext.data.datasets.load import OWN, load_splits
from convnext.data.splits import Splits
from convnext.devices import make_accelerator
from convnext.errors import SettingsError
from convnext.runs.checkpoint import read_settings, read_state
from convnext.runs.folder import as_begun, check_same_settings
from convnext.training import memory
from convnext.training.memory import go_on_device, settle_augment_on
from convnext.training.resolve import resolve_settings
from convnext.training.trainer import Trainer
from convnext.weights.model_info import read_json
from tests.support.killing import TINY, Point, last_line, result, run, steps

ON = (
    *TINY,
    "--augment.policy",
    "trivialaugment",
    "--augment.mix-by",
    "element",
    "--data.start-size",
    "6",
    "--data.augment-on",
)
RUN = Path("runs") / "digits"


@pytest.mark.parametrize(("begun", "other"), [("device", "workers"), ("workers", "device")])
def test_killed_and_resumed_it_ends_as_the_run_that_was_never_stopped(begun: str, other: str, tmp_path: Path) -> None:
    """Also where the machine that it goes on on would choose otherwise, as this one does for workers."""
    whole = run([*ON, begun], tmp_path / "whole")
    assert whole.status == 0, whole.text
    assert ("on cpu (that holds and augments the training images) in fp32" in whole.text) == (begun == "device")
    for point, choice in ((Point(3), begun), (Point(13, signal=signal.SIGTERM), "auto"), (Point(17), "auto")):
        ended = run([*ON, choice, "--save-every-steps", "2", "--resume"], tmp_path, point)
        assert ended.status in (-signal.SIGKILL, 128 + signal.SIGTERM), ended.text
    assert steps(tmp_path / RUN)[-1] == 16
    assert run([*ON, "auto", "--resume"], tmp_path).status == 0
    assert json.loads((tmp_path / RUN / "settings.json").read_text())["data"]["augment_on"] == begun
    assert result(tmp_path / RUN) == result(tmp_path / "whole" / RUN)
    error = last_line(run([*ON, other, "--resume", RUN], tmp_path))
    assert f"data.augment_on was {begun}, now {other}" in error


def older(folder: Path, settings: RunSettings) -> None:
    """Write the settings of a run of a version that did not have the choice."""
    values = settings.model_dump(mode="json")
    del values["data"]["augment_on"]
    (folder / "settings.json").write_text(json.dumps(values))


def test_older_runs_have_their_images_from_workers(tmp_path: Path) -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "format-2" / "adamw"
    assert read_state(fixture / "checkpoints" / "last").settings.data.augment_on == "workers"
    assert read_json(fixture / "settings.json", RunSettings).data.augment_on == "workers"
    settings = recipe("digits")
    older(tmp_path, settings)
    assert read_settings(tmp_path / "settings.json")["data"]["augment_on"] == "workers"
    assert as_begun(tmp_path, settings).data.augment_on == "workers"
    for choice in ("auto", "workers"):
        check_same_settings(tmp_path, settings.replace(**{"data.augment_on": choice}))
    with pytest.raises(SettingsError, match=r"data\.augment_on was workers, now device"):
        check_same_settings(tmp_path, settings.replace(**{"data.augment_on": "device"}))
    (tmp_path / "some.json").write_text('{"data": {"image_size": 16}}')  # written by hand
    assert "augment_on" not in read_settings(tmp_path / "some.json")["data"]


def digits(**changes: object) -> tuple[RunSettings, Splits]:
    settings = recipe("digits", **changes)
    return settings, load_splits(settings.data)


def test_a_cpu_takes_arrays_unasked(monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> None:
    """A quarter of what is free, shared by the processes."""
    settings, splits = digits(device="cpu", **{"data.augment_on": "auto"})
    accelerator = make_accelerator(settings)
    assert settle_augment_on(settings, splits, accelerator).data.augment_on == "device"
    needed = 1293 * 8 * 8
    monkeypatch.setattr(memory, "available", lambda: 4 * needed - 1)
    assert settle_augment_on(settings, splits, accelerator).data.augment_on == "workers"
    assert go_on_device(settings, splits, 8 * needed, 2)
    assert not go_on_device(settings, splits, 8 * needed - 1, 2)
    data = {"name": "folder", "root": small_folder, "image_size": 8}
    settings = recipe("digits", data=data, augment={"crop": "padding"})
    files = load_splits(settings.data)
    assert go_on_device(settings, files, 2**40)
    assert not go_on_device(settings, files, 2**40, 1)
    monkeypatch.setenv("CONVNEXT_CACHE", str(small_folder.parent / "cache"))
    cached = replace(files, train=open_cache(files.train, 384, progress=False))
    assert not go_on_device(settings, cached, 2**40, 1)  # what is drawn must not depend on the cache


def test_images_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, splits = digits(device="cpu", **{"data.augment_on": "device"})
    accelerator = make_accelerator(settings)
    assert settle_augment_on(settings, splits, accelerator) == settings
    monkeypatch.setattr(memory, "available", lambda: 80_000)
    with pytest.raises(SettingsError, match=r"the training images take 82\.8 kB and cpu has 80\.0 kB free"):
        settle_augment_on(settings, splits, accelerator)


def test_a_gpu_takes_what_fits_into_a_quarter_of_its_memory() -> None:
    settings, splits = digits()
    needed = 1293 * 8 * 8
    assert go_on_device(settings, splits, 4 * needed)
    assert not go_on_device(settings, splits, 4 * needed - 1)
    several = settings.replace(**{"data.start_size": 4, "augment.crop": "padding"})
    assert several.epochs > 5
    assert not go_on_device(several, splits, 4 * needed)
    assert go_on_device(several, splits, 4 * 1293 * sum(size**2 for size in range(4, 9)))


def test_a_gpu_leaves_to_workers_what_it_cannot_know(small_folder: Path) -> None:
    free = 2**40
    settings, splits = digits()
    assert go_on_device(settings, splits, free)
    assert not go_on_device(settings.replace(**{"data.name": OWN}), splits, free)
    settings, splits = digits(data={"name": "folder", "root": small_folder})
    assert not go_on_device(settings, splits, free)  # areas of files, whose sizes are not known
    assert go_on_device(settings.replace(augment={"crop": "padding"}), splits, free)


@pytest.mark.cuda
def test_a_gpu_takes_them_unasked_and_no_batch_waits_for_it(tmp_path: Path) -> None:
    augment = {"random_erasing": 0.5, "cutmix": 1.0, "mix_by": "element"}
    settings = recipe("digits", device="cuda", epochs=2, augment=augment, trackers=())
    accelerator = make_accelerator(settings)
    trainer = Trainer(*resolve_settings(settings, load_splits(settings.data), accelerator), accelerator)
    trainer.open(tmp_path)
    assert trainer.settings.data.augment_on == "device"
    assert trainer.resident is not None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [trainer.to_device(batch)[0] for batch in trainer.resident.batches(trainer.sampler)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(made) == trainer.total_steps
    assert all(images.device.type == "cuda" and images.isfinite().all() for images in made)
