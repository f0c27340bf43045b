"""A run goes on by its folder, wherever that is now; and stops where its folder is taken away from under it."""

import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import convnext
from convnext.cli import main
from convnext.data.loading.loader import Batch
from convnext.errors import CheckpointError, SettingsError
from convnext.training.interruption import StopSignals
from convnext.training.trainer import Trainer
from tests.support.killing import STEPS_PER_EPOCH, TINY, Point, Started, last_line, result, run

RUN = Path("runs") / "digits"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run that was never stopped ends with."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(TINY, folder).status == 0
    return result(folder / RUN)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was interrupted in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    assert run(TINY, folder, Point(STEPS_PER_EPOCH + 3, signal=signal.SIGTERM)).status == 128 + signal.SIGTERM
    return folder


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of `stopped_run`."""
    return Path(shutil.copytree(stopped_run, tmp_path / "stopped", symlinks=True))


@pytest.mark.parametrize(
    ("place", "args"),
    [
        ("runs/digits", ["--resume", "runs/digits"]),
        ("runs/mine", ["--resume=runs/mine", "--keep", "3"]),
        ("elsewhere/digits-2", ["digits", "--resume", "elsewhere/digits-2/"]),
        ("mine", ["--keep", "3", "--resume", "mine/checkpoints/last"]),
    ],
)
def test_a_renamed_or_moved_run_goes_on_under_its_own_settings(
    place: str, args: list[str], whole: dict[str, Any], stopped: Path
) -> None:
    folder = stopped / place
    folder.parent.mkdir(exist_ok=True)
    (stopped / RUN).rename(folder)
    ended = run(["train", *args], stopped)
    assert ended.status == 0, ended.text
    assert f"resumed after step {STEPS_PER_EPOCH + 3} of" in ended.text
    assert ("keep was 2, now 3" in ended.text) == ("--keep" in args)
    assert result(folder) == whole
    settings = json.loads((folder / "settings.json").read_text())
    # A numbered folder of the name is a run of that name.
    expected = ("digits" if "digits" in place else "mine", str(Path(place).parent))
    assert (settings["name"], settings["output"]) == expected
    assert [path.parent for path in stopped.rglob("settings.json")] == [folder]


def test_from_python(stopped: Path) -> None:
    folder = (stopped / RUN).rename(stopped / "mine")
    copies = [Path(shutil.copytree(folder, stopped / str(number), symlinks=True)) for number in range(3)]
    own = convnext.RunSettings(**json.loads((folder / "settings.json").read_text()))
    assert convnext.train(resume=copies[0]).path == copies[0]
    assert convnext.train("digits", resume=str(copies[1])).path == copies[1]
    assert convnext.train(own.replace(keep=1), resume=copies[2]).settings.name == "2"
    assert result(copies[0]) == result(copies[1]) == result(copies[2])
    assert result(copies[0])["last step"] == 2 * STEPS_PER_EPOCH
    with pytest.raises(SettingsError, match="seed was 0, now 1"):
        convnext.train(own.replace(seed=1), resume=folder)
    with pytest.raises(SettingsError, match="was started from recipe 'digits', not 'mnist'"):
        convnext.train("mnist", resume=folder)
    with pytest.raises(CheckpointError, match=r"it has no settings\.json"):
        convnext.train(resume=stopped / "runs")
    with pytest.raises(SettingsError, match="train what"):
        convnext.train()


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--resume", "runs/digts"], "runs/digts is not there; did you mean runs/digits?"),
        (["--resume", "runs"], "runs is no run: it has no settings.json; known: runs/digits"),
        (["--resume", "digits"], "put digits first: convnext train digits --resume"),
        (["mnist", "--resume", "runs/digits"], "was started from recipe 'digits', not 'mnist'"),
        (["--resume", "runs/digits", "--seed", "1"], "seed was 0, now 1. Go on under its own with"),
        (["--resume", "runs/digits", "--settings", "runs/digits"], "leave one out"),
        (["--resume", f"runs/digits/checkpoints/step-{STEPS_PER_EPOCH:08d}"], "is another: give runs/digits, or"),
        (["--resume"], "to go on with a run, give its folder after --resume"),
    ],
)
def test_what_cannot_be_resumed_is_one_line(
    args: list[str],
    complaint: str,
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(stopped)
    assert main(["train", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_help_shows_the_runs_own_values(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stopped)
    assert main(["train", "--resume", str(RUN), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Go on with {RUN}. Its settings:" in out
    assert "(default: 128)" in out


def take_away(step: int, what: Callable[[], object]) -> None:
    """Do ``what`` in this process when step ``step`` of the run has ended."""
    take_step = Trainer.step

    def stepped(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        asked = take_step(trainer, batch, signals)
        if trainer.state.step == step:
            what()
        return asked

    Trainer.step = stepped  # type: ignore[method-assign, assignment]


def renamed_and_made_anew() -> None:
    RUN.rename("mine")
    RUN.mkdir()
    (RUN / "settings.json").write_text("{}")
    (RUN / ".lock").write_text("1")


TAKEN: dict[str, Callable[[], object]] = {
    "removed": partial(shutil.rmtree, RUN),
    "renamed": partial(RUN.rename, "mine"),
    "its parent renamed": partial(RUN.parent.rename, "others"),
    "made anew": renamed_and_made_anew,
}


@pytest.mark.parametrize("step", [3, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH])
@pytest.mark.parametrize("how", TAKEN)
def test_a_run_whose_folder_is_taken_away_stops(how: str, step: int, tmp_path: Path, whole: dict[str, Any]) -> None:
    args = [*TINY, "--trackers", "tensorboard", "--save-every-steps", "2"]
    ended = Started(args, tmp_path, partial(take_away, step, TAKEN[how])).end()
    line = last_line(ended)
    assert f"{tmp_path / RUN} was removed or renamed while this run was training into it" in line
    assert "Traceback" not in ended.text
    if how == "made anew":
        assert sorted(path.name for path in (tmp_path / RUN).iterdir()) == [".lock", "settings.json"]
    else:
        assert not (tmp_path / RUN).exists()
    if how == "renamed" and step > 3:
        assert run(["train", "--resume", "mine", "--trackers"], tmp_path).status == 0
        assert result(tmp_path / "mine") == whole
