"""Runs whose training images lie on the device: exact after any interruption, and refused where they cannot."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convnext import recipe
from convnext.config import RunSettings
from convnext.data.cache.source import open_cache
from convnext.data.datasets.load import OWN, load_splits
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.devices import make_accelerator
from convnext.errors import SettingsError
from convnext.runs.checkpoint import read_settings, read_state
from convnext.runs.folder import as_begun, check_same_settings
from convnext.training import memory
from convnext.training.memory import goes_on, settle_augment_on
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


def test_a_cpu_takes_images_of_one_size_unasked(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to two gigabytes of them, if that is free; of folds, too; and not of a folder, cached or not."""
    settings, splits = digits(device="cpu", **{"data.augment_on": "auto"})
    assert settle_augment_on(settings, splits, make_accelerator(settings)).data.augment_on == "device"
    needed = 1293 * 8 * 8
    assert goes_on("cpu", settings, splits, needed)
    assert not goes_on("cpu", settings, splits, needed - 1)
    most = 2**31 // 64
    pixels, targets = np.empty((most + 1, 8, 8), np.uint8), np.zeros(most + 1, np.int64)
    many = ArraySource(pixels, targets, 1)
    assert not goes_on("cpu", settings, replace(splits, train=many), 2**40)
    assert goes_on("cpu", settings, replace(splits, train=ArraySource(pixels[1:], targets[1:], 1)), 2**40)
    assert goes_on("cpu", settings, load_splits(settings.data.replace(folds=5)), 2**40)
    assert goes_on("cpu", settings.replace(augment={"policy": "trivialaugment"}), splits, 2**40)
    data = {"name": "folder", "root": small_folder, "image_size": 8}
    folder = recipe("digits", data=data, augment={"crop": "padding"})
    files = load_splits(folder.data)
    assert goes_on("cuda", folder, files, 2**40)
    assert not goes_on("cpu", folder, files, 2**40)
    monkeypatch.setenv("CONVNEXT_CACHE", str(small_folder.parent / "cache"))
    cached = replace(files, train=open_cache(files.train, 384, progress=False))
    assert not goes_on("cpu", folder, cached, 2**40)


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 300_000)
    settings, splits = digits(device="cpu")
    accelerator = make_accelerator(settings)
    asked = settings.replace(**{"data.augment_on": "device"})
    for choice in (settings, asked):
        assert settle_augment_on(choice, splits, accelerator).data.augment_on == "device"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert settle_augment_on(settings, splits, accelerator).data.augment_on == "workers"
    with pytest.raises(SettingsError, match=r"the training images take 82\.8 kB and cpu has 75\.0 kB free"):
        settle_augment_on(asked, splits, accelerator)


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
    assert goes_on("cuda", settings, splits, 4 * needed)
    assert not goes_on("cuda", settings, splits, 4 * needed - 1)
    several = settings.replace(**{"data.start_size": 4, "augment.crop": "padding"})
    assert several.epochs > 5
    assert not goes_on("cuda", several, splits, 4 * needed)
    assert goes_on("cuda", several, splits, 4 * 1293 * sum(size**2 for size in range(4, 9)))


def test_what_cannot_be_known_or_was_not_measured_is_left_to_workers(small_folder: Path) -> None:
    free = 2**40
    settings, splits = digits()
    assert goes_on("cuda", settings, splits, free)
    for device in ("cpu", "cuda", "mps"):
        assert not goes_on(device, settings.replace(**{"data.name": OWN}), splits, free)
    assert not goes_on("mps", settings, splits, free)
    for change in ({"policy": "trivialaugment"}, {"color_jitter": 0.1}):
        assert not goes_on("cuda", settings.replace(augment=change), splits, free)
    settings, splits = digits(data={"name": "folder", "root": small_folder})
    assert not goes_on("cuda", settings, splits, free)  # areas of files, whose sizes are not known
    assert goes_on("cuda", settings.replace(augment={"crop": "padding"}), splits, free)


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
