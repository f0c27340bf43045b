"""`convnext runs` and `inspect`: what they say of runs that are finished, under way, cut off, damaged or old."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import convnext
from convnext import RunSettings, recipe
from convnext.cli import main
from convnext.errors import SettingsError
from convnext.models.registry import resolve
from convnext.runs import checkpoint, history
from convnext.runs.folder import read_metrics
from convnext.storage.locks import locked

CHANGES: dict[str, Any] = {
    "epochs": 2,
    "trackers": (),
    "model.depths": (1, 1),
    "model.dims": (8, 16),
    "data.workers": 0,
    "seed": 3,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    return convnext.train(recipe("digits", output=tmp_path_factory.mktemp("runs"), **CHANGES))


@pytest.fixture
def run(trained: convnext.Run, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    shutil.copytree(trained.path, tmp_path / "runs" / "digits", symlinks=True)
    return tmp_path / "runs" / "digits"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_run_has_its_numbers_and_what_was_changed(trained: convnext.Run) -> None:
    (found,) = history.list_runs(trained.path.parent)
    assert (found.path, found.recipe, found.status) == (trained.path, "digits", "finished")
    assert (found.epoch, found.epochs) == (2, 2)
    assert found.best_val_top1 == max(line["val_top1"] for line in read_metrics(trained.path))
    assert (found.test_top1, found.test_macro_f1) == (trained.report.top1, trained.report.macro_f1)
    as_json = {name: list(value) if isinstance(value, tuple) else value for name, value in CHANGES.items()}
    assert found.changes == as_json
    assert not found.problems
    assert history.list_runs(trained.path) == [found]


def test_a_run_that_a_process_works_on_is_running(run: Path) -> None:
    with locked(run):
        before = (run / ".lock").read_text()
        assert history.summarise(run).status == "running"
        assert (run / ".lock").read_text() == before
    assert history.summarise(run).status == "finished"
    (run / ".lock").unlink()
    assert history.summarise(run).status == "finished"
    assert not (run / ".lock").exists()


def test_a_run_without_its_test_can_be_resumed_if_it_saved_a_checkpoint(run: Path) -> None:
    (run / "test_report.json").unlink()
    found = history.summarise(run)
    assert (found.status, found.test_top1) == ("interrupted", None)
    shutil.rmtree(run / "checkpoints")
    assert history.summarise(run).status == "failed"


def test_a_test_in_the_middle_of_training_does_not_finish_it(run: Path) -> None:
    first = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (run / "metrics.jsonl").write_text(first + '{"epoch": 2, "st')
    found = history.summarise(run)
    assert (found.status, found.epoch) == ("interrupted", 1)
    assert found.test_top1 is not None


def test_the_split_that_stands_in_for_a_test_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "test_report.json").rename(run / "val_report.json")
    found = history.summarise(run)
    assert (found.status, found.test_name) == ("finished", "val")
    assert main(["runs", str(run)]) == 0
    assert " % (val)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "status", "problem"),
    [
        (lambda run: (run / "settings.json").write_text('{"epo'), "damaged", "cannot read .*settings.json"),
        (lambda run: edit(run / "settings.json", tensorboard=True), "finished", "no setting is called tensorboard"),
        (lambda run: edit(run / "settings.json", recipe="gone"), "finished", "no recipe is called 'gone'"),
        (lambda run: (run / "metrics.jsonl").write_text("nonsense\n"), "damaged", "metrics.jsonl is damaged"),
        (lambda run: (run / "test_report.json").write_text("[]"), "damaged", "cannot read .*test_report.json"),
    ],
)
def test_what_cannot_be_read_is_told_in_the_runs_row(
    run: Path, spoil: Callable[[Path], None], status: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, run.with_name("whole"), symlinks=True)
    spoil(run)
    assert main(["runs", str(run.parent), "--json"]) == 0
    rows = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert not rows["whole"]["problems"]
    (told,) = rows["digits"]["problems"]
    assert re.search(problem, told)
    assert rows["digits"]["status"] == status


def test_the_table_and_the_folders_that_are_no_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "notes").mkdir()
    (run.parent / "file").touch()
    assert main(["runs", str(run.parent)]) == 0
    out = capsys.readouterr().out
    assert "digits" in out
    assert "epochs=2" in out
    assert "model.dims=8,16" in out
    assert "notes" not in out
    assert main(["runs", str(run.parent / "notes")]) == 0
    captured = capsys.readouterr()
    assert (captured.out, "no runs in" in captured.err) == ("", True)
    assert main(["runs", str(run.parent / "nowhere")]) == 2
    assert "nowhere is not there" in capsys.readouterr().err


def test_curves_of_several_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "elsewhere" / "$odd_{name"
    shutil.copytree(run, other, symlinks=True)
    picture = tmp_path / "curves.png"
    assert main(["runs", str(run.parent), "--plot", "digits", str(other), "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {picture}" in capsys.readouterr().out
    assert main(["runs", str(run.parent), "--plot", "digit"]) == 2
    assert "no run is called 'digit'" in capsys.readouterr().err
    assert main(["runs", str(run.parent), "--plot", "digits", "--output", str(tmp_path / "no" / "x.png")]) == 2
    assert "make it first" in capsys.readouterr().err
    (run / "metrics.jsonl").unlink()
    assert main(["runs", str(run.parent), "--plot", "digits"]) == 2
    assert "no epoch has ended in digits" in capsys.readouterr().err


def test_listing_does_not_wait_for_torch(run: Path) -> None:
    code = (
        "import sys; from convnext.cli import main; status = main(['runs', sys.argv[1]]);"
        'sys.exit(f\'{status} {sys.modules.keys() & {"torch", "sklearn", "matplotlib"} or None}\')'
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.parent)], capture_output=True, text=True)
    assert done.stderr.strip() == "0 None"
    assert "finished" in done.stdout


def resolved(**changes: Any) -> RunSettings:
    """A recipe's settings as a run writes them."""
    settings = recipe("imagenet1k-tiny", **changes)
    changed: RunSettings = settings.replace(
        model=resolve(settings.model), precision="bf16", **{"data.mean": (0.5,) * 3, "data.std": (0.2,) * 3}
    )
    return changed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"name": "mine", "output": "elsewhere", "data.root": "images"}, {}),
        ({"model.name": "convnext_small"}, {"model.name": "convnext_small"}),
        ({"model.kernel_size": 5}, {"model.kernel_size": 5}),
        ({"gradient_accumulation": 4, "batch_size": 8}, {"gradient_accumulation": 4, "batch_size": 8}),
    ],
)
def test_only_what_was_changed_differs_from_a_recipe(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = history.differences(resolved(**changes))
    follows = {"model.stochastic_depth"}  # with the model's size, in this recipe
    assert {name: value for name, value in found.items() if name not in follows} == expected


def test_without_a_recipe_the_defaults_are_compared_with() -> None:
    assert history.differences(RunSettings(epochs=7)) == {"epochs": 7}
    with pytest.raises(SettingsError, match="no recipe is called 'gone'"):
        history.differences(RunSettings(recipe="gone"))


def inspected(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, args), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_inspect_prints_what_the_checkpoint_holds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    model, info = checkpoint.load_model(run / "checkpoints" / "last")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for text in (
        f"model: ConvNeXt of depths 1 1 and dims 8 16, {parameters:,} parameters",
        "classes: 10: 0, 1, 2, 3, 4 and 5 more",
        "images: 1 channel, 8 px, centre crop 1",
        f"mean: {info.mean[0]:.4f}",
        "step: 40 of 40 (epoch 2 of 2)",
        "recipe: digits",
        "settings: epochs=2 trackers=() seed=3 model.depths=1,1 model.dims=8,16 data.workers=0",
        f"versions: convnext {convnext.__version__}, torch ",
        "best: top-1 ",
        "images' digests: train=",
    ):
        assert text in out
    assert [word in out for word in ("whole", "damaged", "note:")] == [True, False, False]


def test_inspect_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, run)
    assert found["format"] == checkpoint.FORMAT
    assert found["model"]["classes"] == [str(digit) for digit in range(10)]
    assert found["state"]["step"] == 40
    assert found["state"]["metrics"] == read_metrics(run)[-1]
    assert set(found["state"]["fingerprints"]) >= {"train", "val", "test"}
    assert found["settings"] == json.loads((run / "settings.json").read_text())
    assert not found["problems"]
    links = {link: Path(one["path"]).name for one in found["checkpoints"] for link in one["links"]}
    for name in ("last", "best"):
        assert links[name] == (run / "checkpoints" / name).resolve().name
        assert Path(inspected(capsys, run, "--checkpoint", name)["path"]).name == links[name]
    (alone,) = inspected(capsys, run / "checkpoints" / "best")["checkpoints"]
    assert "best" in alone["links"]


def test_inspect_as_json_has_null_for_what_json_has_no_number_of(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run / "checkpoints" / "last" / "training.json", metrics={"val_loss": float("inf")}, loss_sum=float("nan"))
    assert main(["inspect", str(run), "--json"]) == 0
    state = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["state"]
    assert (state["metrics"], state["loss_sum"]) == ({"val_loss": None}, None)


def test_inspect_tells_a_damaged_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "checkpoints" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    conditions = {Path(one["path"]).name: one["condition"] for one in inspected(capsys, run)["checkpoints"]}
    last = (run / "checkpoints" / "last").resolve().name
    assert conditions.pop(last) == "damaged"
    assert set(conditions.values()) <= {"whole"}
    (run / "checkpoints" / "last" / "model.json").write_text("{")
    found = inspected(capsys, run)
    assert (found["model"], found["parameters"], found["state"]["step"]) == (None, None, 40)
    assert "model.json" in found["problems"][0]
    assert main(["inspect", str(run)]) == 0
    assert "note: cannot read" in capsys.readouterr().out


def test_inspect_reads_an_older_format_and_says_that_it_cannot_be_resumed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints" / "last"
    state = json.loads((folder / "training.json").read_text())
    for name in ("metrics", "fingerprints", "skipped", "skipped_in_all", "scaler"):
        del state[name]
    state |= {"format": 1, "unreadable": 0, "settings": state["settings"] | {"tensorboard": True}}
    (folder / "training.json").write_text(json.dumps(state))
    (folder / "sha256.json").unlink()
    found = inspected(capsys, run)
    assert found["format"] == 1
    assert found["checkpoints"][-1]["condition"] == "no digests"
    assert (found["state"]["step"], found["parameters"] > 0) == (40, True)
    assert found["settings"] == state["settings"]
    reason, settings = found["problems"]
    assert "has checkpoint format 1, and this version goes on from format 3" in reason
    assert "no setting is called tensorboard" in settings
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "step: 40\n" in out
    assert "recipe: digits" in out


def test_inspect_without_a_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "best").unlink()
    assert main(["inspect", str(run), "--checkpoint", "best"]) == 2
    assert "has no checkpoint 'best'; it has: last" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main(["inspect", str(run)]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    assert main(["inspect", str(run / "nowhere")]) == 2
    assert "nowhere is not there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "imagenette", "folder"])
def test_a_recipes_schedule_can_be_drawn(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "schedule.png"
    assert main(["recipes", name, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert ("your images decide" in capsys.readouterr().out) == (name == "folder")


def test_a_schedule_needs_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--plot", str(tmp_path / "x.png")]) == 2
    assert "which recipe's schedule?" in capsys.readouterr().err
