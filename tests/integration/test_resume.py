"""Nothing is lost: a run that was killed, wherever and how often, ends as the one that was never stopped.

Compared are SHA-256 of every tensor of the checkpoints (weights, moving average, optimizer), where training stands, the
metrics of every epoch and the report on the test split.
"""

import itertools
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from convnext.runs import checkpoint
from convnext.runs.folder import read_metrics
from tests.support.killing import STEPS, STEPS_PER_EPOCH, TINY, Point, Started, result, run, steps

MUON_BF16 = ("--optimizer.name", "muon", "--precision", "bf16")
RUN = Path("runs") / "digits"


def finish(args: tuple[object, ...], folder: Path) -> str:
    """Resume to the end; gives what was said."""
    ended = run([*args, "--resume"], folder)
    assert ended.status == 0, ended.text
    return ended.text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run that was never stopped ends with."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(TINY, folder).status == 0
    found = result(folder / RUN)
    assert found["last step"] == found["best step"] == STEPS
    return found


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed before its last step, with checkpoints of the two steps before that."""
    folder = tmp_path_factory.mktemp("stopped")
    ended = run([*TINY, "--save-every-steps", "1"], folder, Point(STEPS))
    assert ended.status == -signal.SIGKILL
    assert steps(folder / RUN) == [STEPS_PER_EPOCH, STEPS - 2, STEPS - 1]  # the first is the best
    return folder


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of `stopped_run`."""
    return Path(shutil.copytree(stopped_run, tmp_path / "stopped", symlinks=True))


@pytest.mark.parametrize("options", [(), MUON_BF16], ids=["adamw", "muon-bf16"])
def test_killed_again_and_again_with_other_worker_counts(
    options: tuple[str, ...], whole: dict[str, Any], tmp_path: Path
) -> None:
    if options:
        assert run([*TINY, *options], tmp_path / "whole").status == 0
        whole = result(tmp_path / "whole" / RUN)
    kills = (
        (0, Point(3)),  # before the first checkpoint
        (2, Point(5)),
        (0, Point(6, disk=3)),  # in a save
        (1, Point(9, signal=signal.SIGTERM)),
        (2, Point(10, disk=1)),  # in the end of an epoch
        (0, Point(11, disk=1)),  # nothing but the start of the next
        (1, Point(17)),
    )
    for workers, point in kills:
        args = [*TINY, *options, "--save-every-steps", "3", "--data.workers", workers, "--resume"]
        ended = run(args, tmp_path, point)
        assert ended.status == (128 + signal.SIGTERM if point.signal == signal.SIGTERM else -signal.SIGKILL), ended.text
    finish((*TINY, *options), tmp_path)
    assert result(tmp_path / RUN) == whole


def with_cache(cache: Path, point: Point | None) -> None:
    os.environ |= {"CONVNEXT_CACHE": str(cache), "CONVNEXT_KERNELS": "0"}  # which would be compiled into it
    if point is not None:
        point.arm()


def test_killed_with_cached_images(small_folder: Path, tmp_path: Path) -> None:
    cache, whole = tmp_path / "cache", tmp_path / "whole"
    data = ("--data.name", "folder", "--data.root", small_folder, "--data.image-size", 8, "--batch-size", 5)
    args = (*TINY, *data)
    whole.mkdir()
    assert Started(args, whole, partial(with_cache, cache, None)).end().status == 0
    cached = (*args, "--data.cache", "disk", "--resume")
    for workers, point in ((1, Point(4)), (0, Point(10, disk=2)), (2, Point(15))):
        options = ("--data.workers", workers, "--save-every-steps", "3")
        ended = Started([*cached, *options], tmp_path, partial(with_cache, cache, point)).end()
        assert ended.status == -signal.SIGKILL, ended.text
    ended = Started(cached, tmp_path, partial(with_cache, cache, None)).end()
    assert ended.status == 0, ended.text
    assert list((cache / "images").iterdir())
    assert result(tmp_path / RUN) == result(whole / RUN)


def test_killed_anywhere_at_the_start(whole: dict[str, Any], tmp_path: Path) -> None:
    for number in range(1, 10):  # folders, lock, settings, metrics
        ended = run([*TINY, "--resume"], tmp_path, Point(disk=number))
        assert ended.status == -signal.SIGKILL, ended.text
    finish(TINY, tmp_path)
    assert result(tmp_path / RUN) == whole
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]


@pytest.mark.parametrize("number", range(1, 13))
def test_killed_anywhere_in_the_last_save(number: int, whole: dict[str, Any], stopped: Path) -> None:
    """Metrics, files, names and links, and the removal of older checkpoints."""
    ended = run([*TINY, "--keep", "1", "--resume"], stopped, Point(STEPS, disk=number))
    assert ended.status == -signal.SIGKILL, ended.text
    assert checkpoint.is_complete(checkpoint.find(stopped / RUN))
    finish(TINY, stopped)
    assert result(stopped / RUN) == whole


def cut_weights(folder: Path) -> None:
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def cut_state(folder: Path) -> None:
    os.truncate(folder / "training.json", 100)


def empty_file(folder: Path) -> None:
    os.truncate(folder / "sha256.json", 0)


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("damage", [cut_weights, cut_state, empty_file, empty_folder])
def test_a_power_cut_costs_one_checkpoint(damage: Callable[[Path], None], whole: dict[str, Any], stopped: Path) -> None:
    folder = stopped / RUN / "checkpoints"
    damage(folder / f"step-{STEPS - 1:08d}")
    said = finish(TINY, stopped)
    assert f"step-{STEPS - 1:08d} is damaged: going on from step-{STEPS - 2:08d}" in said
    assert f"resumed after step {STEPS - 2} of {STEPS}" in said
    assert (folder / f"damaged-step-{STEPS - 1:08d}").is_dir()
    assert result(stopped / RUN) == whole


def test_two_damaged_checkpoints_are_both_named(whole: dict[str, Any], stopped: Path) -> None:
    for step in (STEPS - 1, STEPS - 2):
        cut_weights(stopped / RUN / "checkpoints" / f"step-{step:08d}")
    said = finish(TINY, stopped)
    assert said.count(f"is damaged: going on from step-{STEPS_PER_EPOCH:08d}") == 2
    assert result(stopped / RUN) == whole


def test_a_line_of_metrics_that_was_being_written_is_written_again(whole: dict[str, Any], stopped: Path) -> None:
    """The epoch's end is reached, its line is cut short, and its checkpoint is not there yet."""
    ended = run([*TINY, "--resume"], stopped, Point(STEPS, disk=2))
    assert ended.status == -signal.SIGKILL
    path = stopped / RUN / "metrics.jsonl"
    assert len(read_metrics(stopped / RUN)) == 2
    os.truncate(path, path.stat().st_size - 20)
    finish(TINY, stopped)
    assert result(stopped / RUN) == whole


def test_a_signal_saves_and_training_goes_on(whole: dict[str, Any], tmp_path: Path) -> None:
    for folder, point, saved in (("a", Point(4), 4), ("b", Point(STEPS_PER_EPOCH, disk=1), STEPS_PER_EPOCH + 1)):
        # The second comes while the end of an epoch is written: the next step is the one that is saved.
        asked = Point(point.step, point.disk, signal.SIGUSR1)
        ended = run([*TINY, "--keep", "9"], tmp_path / folder, asked)
        assert ended.status == 0, ended.text
        assert steps(tmp_path / folder / RUN) == sorted({saved, STEPS_PER_EPOCH, STEPS})
        assert result(tmp_path / folder / RUN) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_stop_ends_with_the_command_that_goes_on(
    number: signal.Signals, whole: dict[str, Any], tmp_path: Path
) -> None:
    ended = run(TINY, tmp_path, Point(7, signal=number))
    assert ended.status == 128 + number
    assert steps(tmp_path / RUN) == [7]
    message, command = ended.text.splitlines()[-2:]
    assert message == f"convnext: stopped by {number.name}; everything is saved in {RUN}"
    again = shlex.split(command.removeprefix("go on with: convnext "))
    assert run(again, tmp_path).status == 0
    assert result(tmp_path / RUN) == whole


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Point(7, signal=signal.SIGHUP).arm()


def test_a_run_under_nohup_outlives_its_terminal(whole: dict[str, Any], tmp_path: Path) -> None:
    ended = Started(TINY, tmp_path, ignore_hangup).end()
    assert ended.status == 0, ended.text
    assert result(tmp_path / RUN) == whole


def test_checkpoints_by_minutes_of_which_the_newest_are_kept(whole: dict[str, Any], tmp_path: Path) -> None:
    # A minute so short that every step is late.
    ended = run([*TINY, "--save-every-minutes", "1e-9", "--keep", "3"], tmp_path, Point(14))
    assert ended.status == -signal.SIGKILL
    assert steps(tmp_path / RUN) == [STEPS_PER_EPOCH, 11, 12, 13]
    finish((*TINY, "--save-every-epochs", "5", "--keep", "1"), tmp_path)
    assert steps(tmp_path / RUN) == [STEPS]
    assert result(tmp_path / RUN) == whole


def test_settings_that_would_change_the_result_are_refused(stopped: Path) -> None:
    before = (stopped / RUN / "settings.json").read_bytes()
    changed = ("--seed", "1", "--optimizer.lr", "0.02", "--ema-decay", "0.8", "--gradient-accumulation", "1")
    ended = run([*TINY, *changed, "--resume"], stopped)
    assert ended.status == 2
    assert ended.text.count("\n") == 1
    assert "with other settings: gradient_accumulation was 2, now 1; ema_decay was 0.9, now 0.8" in ended.text
    assert "and 1 more" in ended.text
    assert (stopped / RUN / "settings.json").read_bytes() == before


def test_settings_that_may_change_are_named(whole: dict[str, Any], stopped: Path) -> None:
    said = finish((*TINY, "--keep", "3", "--max-skipped-steps", "5"), stopped)
    changed = "save_every_steps was 1, now None; keep was 2, now 3; max_skipped_steps was 10, now 5"
    assert f"changed since the run was last started: {changed}\n" in said
    assert result(stopped / RUN) == whole
    assert "changed since" not in finish((*TINY, "--keep", "3", "--max-skipped-steps", "5"), stopped)


def test_what_a_kill_left_of_a_file_is_removed(whole: dict[str, Any], stopped: Path) -> None:
    left = list[Path]()
    for number in itertools.count(1):  # up to the change of the disk which finds a file half-written
        assert run([*TINY, "--resume"], stopped, Point(disk=number)).status == -signal.SIGKILL
        if left := list((stopped / RUN).glob(".*.tmp")):
            break
    others = left[0].with_name(f".test_report.json.{os.getpid()}.tmp")  # of an evaluation that goes on
    others.touch()
    finish(TINY, stopped)
    assert list((stopped / RUN).glob(".*.tmp")) == [others]
    assert result(stopped / RUN) == whole


def test_evaluated_while_it_is_not_finished(whole: dict[str, Any], stopped: Path) -> None:
    assert run(["evaluate", RUN], stopped).status == 0
    halfway = json.loads((stopped / RUN / "test_report.json").read_text())
    assert halfway["count"] == whole["report"]["count"]
    finish(TINY, stopped)
    assert result(stopped / RUN) == whole
