"""Trackers: what they keep of a run, under one identity however often it is resumed, and that none stops it."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import convnext
from convnext import RunSettings, recipe
from convnext.errors import SettingsError
from convnext.evaluation.metrics import Report
from convnext.runs.folder import flatten, read_metrics
from convnext.training.tracking import Tracker

# TensorBoard writes in a thread, which prints what it raises before it hands it on to the run.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

REPORT = Report(top1=0.75, top5=1.0, macro_f1=0.5, loss=0.25, count=4, per_class={})
STEPS = 10  # an epoch


def settings(*trackers: str, **changes: Any) -> RunSettings:
    return recipe("digits", trackers=trackers, **changes)


def numbers(epoch: int, loss: float) -> dict[str, Any]:
    return {"epoch": epoch, "step": STEPS * epoch, "train_loss": loss, "val_top1": 0.1 * epoch}


def picture(folder: Path, side: int = 12) -> Path:
    """Noise, which takes its three bytes a pixel."""
    path = folder / "curves.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard")).Reload()


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 4)) for event in events(run).Scalars(name)]


def test_tensorboard_has_settings_curves_final_metrics_and_pictures(tmp_path: Path) -> None:
    with Tracker(tmp_path, 0, settings("tensorboard", seed=7)) as tracker:
        tracker.log(numbers(1, 2.0))
        tracker.log(numbers(2, 1.0))
        tracker.finish(REPORT, [picture(tmp_path)])
    assert scalars(tmp_path, "train/loss") == [(10, 2.0), (20, 1.0)]
    assert scalars(tmp_path, "val/top1") == [(10, 0.1), (20, 0.2)]
    assert scalars(tmp_path, "test/top1") == [(20, 0.75)]
    assert scalars(tmp_path, "test/macro_f1") == [(20, 0.5)]
    found = events(tmp_path)
    (image,) = found.Images("pictures/curves")
    assert (image.step, image.width, image.height) == (20, 12, 12)
    hyper = found.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    start = metadata.parse_session_start_info_plugin_data(hyper)
    assert set(start.hparams) == set(flatten(settings()))
    assert start.hparams["seed"].number_value == 7
    assert start.hparams["channels_last"].bool_value
    assert start.hparams["model.dims"].string_value == "[32, 64, 128]"
    assert not [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()]  # each would be another run


def test_training_ends_with_the_final_metrics_and_pictures_at_the_trackers(tmp_path: Path) -> None:
    small = settings("tensorboard", epochs=1, output=tmp_path, **{"model.dims": (8, 8, 8), "data.workers": 0})
    run = convnext.train(small)
    ((_, top1),) = scalars(run.path, "test/top1")
    assert top1 == round(run.report.top1, 4)
    names = ("curves", "test_confusion_matrix", "test_predictions", "test_mistakes")
    assert events(run.path).Tags()["images"] == [f"pictures/{name}" for name in names]


def test_a_resumed_run_goes_on_from_its_step(tmp_path: Path) -> None:
    with Tracker(tmp_path, 0, settings("tensorboard")) as tracker:
        for epoch, loss in ((1, 3.0), (2, 2.0), (3, 99.0)):
            tracker.log(numbers(epoch, loss))
    with Tracker(tmp_path, 2 * STEPS, settings("tensorboard")) as tracker:
        assert [line["epoch"] for line in tracker.history] == [1, 2]
        for epoch, loss in ((3, 1.0), (4, 0.5)):
            tracker.log(numbers(epoch, loss))
    expected = [(10, 3.0), (20, 2.0), (30, 1.0), (40, 0.5)]
    assert scalars(tmp_path, "train/loss") == expected
    assert [(line["step"], line["train_loss"]) for line in read_metrics(tmp_path)] == expected


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path, 0, settings("tensorboard", "wandb"), main=False) as tracker:
        tracker.log(numbers(1, 1.0))
        tracker.finish(REPORT, [])
    assert len(tracker.history) == 1
    assert not list(tmp_path.iterdir())


def test_a_tensorboard_folder_that_goes_away_does_not_stop_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tmp_path, 0, settings("tensorboard")) as tracker:
        tracker.log(numbers(1, 3.0))
        shutil.rmtree(tmp_path / "tensorboard")
        (tmp_path / "tensorboard").touch()
        tracker.log(numbers(2, 2.0))
        tracker.log(numbers(3, 1.0))
        tracker.finish(REPORT, [picture(tmp_path)])
    assert capfd.readouterr().err.count("tracker tensorboard failed (") == 1
    assert [line["train_loss"] for line in read_metrics(tmp_path)] == [3.0, 2.0, 1.0]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_for_the_pictures_does_not_stop_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    large = picture(tmp_path, 300)
    with files_of_at_most(100_000), Tracker(tmp_path, 0, settings("tensorboard")) as tracker:
        tracker.log(numbers(1, 3.0))
        tracker.finish(REPORT, [large])
    assert "tracker tensorboard failed (" in capfd.readouterr().err
    assert scalars(tmp_path, "train/loss") == [(10, 3.0)]


def test_a_tracker_that_cannot_start_stops_a_new_run_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(SettingsError, match=r"tracker tensorboard cannot start \(.*\): see that"):
        Tracker(tmp_path, 0, settings("tensorboard"))
    with Tracker(tmp_path, STEPS, settings("tensorboard")) as tracker:
        tracker.log(numbers(2, 1.0))
    assert "tracker tensorboard failed (" in capfd.readouterr().err
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [2]


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingsError, match=r"tracker wandb cannot start .*pip install 'convnext\[wandb\]'"):
        Tracker(tmp_path, 0, settings("wandb"))


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def recorded(run: Path) -> list[list[Any]]:
    """The records of each of the run's W&B files, oldest file first: blocks of 32 KiB, as LevelDB's log has them."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    wandb.teardown()  # its service writes on after a run's end
    found = []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        data, place, part, records = path.read_bytes(), 7, b"", []
        while place + 7 <= len(data):
            if (rest := 2**15 - place % 2**15) < 7:
                place += rest
                continue
            _, length, kind = struct.unpack_from("<IHB", data, place)
            part, place = part + data[place + 7 : place + 7 + length], place + 7 + length
            if kind in (1, 4):  # whole, or the last part
                records.append(Record.FromString(part))
                part = b""
        found.append(records)
    return found


def items(records: list[Any], kind: str, field: str) -> list[dict[str, Any]]:
    """The values of every record of a kind, such as the steps of the history."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in getattr(found, field)}
        for record in records
        if record.WhichOneof("record_type") == kind
        for found in [getattr(record, kind)]
    ]


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_has_settings_curves_final_metrics_and_pictures_under_one_identity(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    tracker = Tracker(run, 0, settings("wandb", seed=7))
    tracker.log(numbers(1, 3.0))
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    with Tracker(run, STEPS, settings("wandb", seed=7)) as tracker:
        tracker.log(numbers(2, 2.0))
        tracker.finish(REPORT, [picture(tmp_path)])
    first, second = recorded(run)
    identity = (run / "wandb_id").read_text()
    for records in (first, second):
        (start,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (start.run_id, start.display_name, start.project) == (identity, "mine", "convnext")
        config = {item.key: json.loads(item.value_json) for item in start.config.update}
        assert {name: config[name] for name in flatten(settings())} == flatten(settings("wandb", seed=7))
    assert [(line["_step"], line["train/loss"]) for line in items(first, "history", "item")] == [(10, 3.0)]
    (line,) = items(second, "history", "item")
    assert (line["_step"], line["train/loss"], line["epoch"]) == (20, 2.0, 2)
    stored = next(run.glob(f"wandb/offline-run-*-{identity}*/files/{line['pictures/curves/path']}"))
    assert stored.read_bytes() == (tmp_path / "curves.png").read_bytes()
    final = {name: value for update in items(second, "summary", "update") for name, value in update.items()}
    assert (final["test/top1"], final["test/macro_f1"], final["val/top1"]) == (0.75, 0.5, 0.2)
    ends = [[r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] for records in (first, second)]
    assert ends == [[1], [0]]


def in_another_process(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the code with a W&B service and settings of its own: this process has started one already."""
    ours = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    command = [sys.executable, "-c", IMPORTS + code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=ours | environment, stdin=subprocess.DEVNULL)


IMPORTS = """
import sys
from contextlib import suppress
from pathlib import Path
import psutil
from convnext import recipe
from convnext.errors import SettingsError
from convnext.training.tracking import Tracker
"""

KILLED_SERVICE = """
with Tracker(Path(sys.argv[1]), 0, recipe("digits", trackers=("wandb",))) as tracker:
    services = psutil.Process().children(recursive=True)
    for service in services:
        with suppress(psutil.NoSuchProcess):  # it ends with the one before
            service.kill()
    psutil.wait_procs(services)
    for epoch in (1, 2, 3):
        tracker.log({"epoch": epoch, "step": epoch})
print("trained to the end")
"""


def test_a_wandb_service_that_dies_does_not_stop_the_run(tmp_path: Path) -> None:
    done = in_another_process(KILLED_SERVICE, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    assert (done.returncode, done.stdout) == (0, "trained to the end\n"), done.stderr
    assert done.stderr.count("tracker wandb failed (") == 1
    assert len(read_metrics(tmp_path)) == 3


NO_KEY = """
try:
    Tracker(Path(sys.argv[1]), 0, recipe("digits", trackers=("wandb",)))
except SettingsError as error:
    print(error)
with Tracker(Path(sys.argv[1]), 5, recipe("digits", trackers=("wandb",))) as tracker:
    tracker.log({"epoch": 1, "step": 10})
"""


def test_wandb_without_a_key_stops_a_new_run_alone(tmp_path: Path) -> None:
    done = in_another_process(NO_KEY, tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / "none"), WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    assert "tracker wandb cannot start (" in done.stdout
    assert "or set WANDB_MODE=offline" in done.stdout
    assert "tracker wandb failed (" in done.stderr
    assert len(read_metrics(tmp_path)) == 1
