"""``convnext compare``: what is trained, what goes on after a kill or a failure, and what the report is made of."""

import functools
import json
import os
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from convnext.cli import main
from convnext.comparison import plan, report, running
from convnext.comparison.budget import measure_pace
from convnext.comparison.cell import Cell
from convnext.comparison.definition import Definition
from convnext.comparison.plan import make_plan
from convnext.data.loading.loader import Batch
from convnext.errors import SettingsError
from convnext.runs.folder import read_metrics
from convnext.training.interruption import StopSignals
from convnext.training.trainer import Trainer
from tests.support.killing import Ended, Started, last_line, result

TINY = shlex.split(
    "--recipe digits --trackers --epochs 1 --batch-size 128 --data.workers 0 --model.depths 1 1 --model.dims 4 8"
)
PATCHES = shlex.split("compare --vary model.patch_size=1,2 --seeds 2 --output out")
SECOND, STEP = "convnext_tiny-model.patch_size=2-seed0", 4  # which training is struck, and at which of its ten steps


def quick_report(cells: Sequence[Cell], output: Path, missing: Sequence[str] = ()) -> None:
    """What these tests want to know of a report, of which drawing is the most part."""
    values = [{**vars(cell), "run": cell.run and str(cell.run)} for cell in cells]
    output.mkdir(exist_ok=True)
    (output / "report.json").write_text(json.dumps({"cells": values, "missing": list(missing)}))


def strike(number: int, at_parent: bool) -> None:
    """Send a signal to the comparison, or to its training itself, in the middle of the second training."""
    running.START_METHOD = "fork"  # so that trainings inherit what follows
    report.write_report = quick_report
    plan.measure_pace = functools.partial(measure_pace, seconds=0.2)  # type: ignore[attr-defined]
    take_step = Trainer.step

    def step(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if number and trainer.settings.name == SECOND and trainer.state.step == STEP:
            os.kill(os.getppid() if at_parent else os.getpid(), number)
            while signals.received is None:  # the comparison, or its end, asks the training to stop
                threading.Event().wait(0.01)
        return take_step(trainer, batch, signals)

    Trainer.step = step  # type: ignore[method-assign, assignment]


def compare(args: list[str], folder: Path, number: int = 0, at_parent: bool = True) -> Ended:
    """Run the command in ``folder`` to its end."""
    folder.mkdir(exist_ok=True)
    return Started(args, folder, functools.partial(strike, number, at_parent)).end()


def cells(folder: Path) -> list[dict[str, Any]]:
    """Those of the report."""
    found: list[dict[str, Any]] = json.loads((folder / "out" / "report.json").read_text())["cells"]
    return found


def results(folder: Path) -> dict[str, Any]:
    """What every training came to."""
    return {run.name: result(run) for run in sorted((folder / "out" / "runs").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    ended = compare([*PATCHES, *TINY], folder)
    assert ended.status == 0, ended.text
    return folder


def test_each_is_trained_with_the_same_seeds_on_the_same_images(whole: Path) -> None:
    assert [(cell["settings"], cell["seed"]) for cell in cells(whole)] == [
        ({"model.patch_size": 1}, 0),
        ({"model.patch_size": 2}, 0),
        ({"model.patch_size": 1}, 1),
        ({"model.patch_size": 2}, 1),
    ]
    found = results(whole)
    assert len(found) == 4
    assert len({json.dumps(each["last fingerprints"]) for each in found.values()}) == 1
    assert (whole / "out" / "comparison.json").exists()


@pytest.mark.parametrize(
    ("number", "at_parent", "status"),
    [
        pytest.param(signal.SIGKILL, True, -signal.SIGKILL, id="comparison-killed"),
        pytest.param(signal.SIGINT, True, 128 + signal.SIGINT, id="comparison-interrupted"),
        pytest.param(signal.SIGKILL, False, 1, id="training-killed"),
    ],
)
def test_stopped_in_the_middle_it_goes_on_exactly(
    number: int, at_parent: bool, status: int, whole: Path, tmp_path: Path
) -> None:
    ended = compare([*PATCHES, *TINY, "--save-every-steps", "2"], tmp_path, number, at_parent)
    assert ended.status == status, ended.text
    first = tmp_path / "out" / "runs" / "convnext_tiny-model.patch_size=1-seed0"
    before = (first / "test_report.json").stat().st_mtime_ns
    missing = [cell for cell in cells(tmp_path) if not cell["run"]]
    if at_parent:
        assert len(missing) == 3
    else:  # the rest went on
        assert [cell["settings"] for cell in missing] == [{"model.patch_size": 2}]
        assert "killed by SIGKILL" in ended.text
        assert "Missing   1 of 4 trainings" in ended.text
    if number == signal.SIGINT:
        assert "go on with: convnext compare --vary model.patch_size=1,2 --seeds 2 --output out" in ended.text
    ended = compare([*PATCHES, *TINY], tmp_path)
    assert ended.status == 0, ended.text
    assert f"resumed after step {4 if number == signal.SIGKILL and not at_parent else 5} of 10" in ended.text
    assert (first / "test_report.json").stat().st_mtime_ns == before
    assert results(tmp_path) == results(whole)
    assert all(cell["run"] for cell in cells(tmp_path))


def test_one_that_fails_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    args = [*shlex.split("compare --vary optimizer.lr=1e-3,1e30 --seeds 1 --output out"), *TINY]
    ended = compare([*args, "--max-skipped-steps", "0"], tmp_path)
    assert ended.status == 2, ended.text
    fine, failed = cells(tmp_path)
    assert (fine["problem"], failed["run"]) == (None, None)
    assert "optimizer.lr=1e+30, seed 0: " in ended.text
    assert "optimizer.clip_norm" in ended.text
    assert "optimizer.clip_norm" in failed["problem"]


def without_reports_but_the_last() -> None:
    strike(0, False)

    def write_report(cells: Sequence[Cell], output: Path, missing: Sequence[str] = ()) -> None:
        if any(cell.run is None for cell in cells):
            raise ValueError("no ink")
        quick_report(cells, output, missing)

    report.write_report = write_report


def test_the_trainings_do_not_wait_for_a_report(tmp_path: Path) -> None:
    args = ["compare", "--seeds", "2", "--output", "out", *TINY]
    ended = Started(args, tmp_path, without_reports_but_the_last).end()
    assert ended.status == 0, ended.text
    assert "no report on what is finished so far: ValueError: no ink" in ended.text
    assert len(cells(tmp_path)) == 2


def test_a_comparison_grows_and_keeps_what_it_has(tmp_path: Path) -> None:
    """By seeds and values, under a budget that is measured once."""
    epochs = TINY.index("--epochs")
    limited = [*TINY[:epochs], *TINY[epochs + 2 :], "--budget", "2e8flop"]
    begun = compare(shlex.split("compare --vary model.patch_size=2 --seeds 1 --output out") + limited, tmp_path)
    assert begun.status == 0, begun.text
    before, plan = results(tmp_path), json.loads((tmp_path / "out" / "comparison.json").read_text())
    ended = compare([*PATCHES, *limited], tmp_path)
    assert ended.status == 0, ended.text
    found = [(cell["settings"]["model.patch_size"], cell["seed"]) for cell in cells(tmp_path)]
    assert found == [(1, 0), (2, 0), (1, 1), (2, 1)]
    after = results(tmp_path)
    assert set(before) == {SECOND}
    assert after[SECOND] == before[SECOND]
    grown = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert grown["contenders"][1] == plan["contenders"][0]
    assert grown["costs"][1] == plan["costs"][0]
    for fewer in ("--vary model.patch_size=1,2 --seeds 1", "--vary model.patch_size=2,4 --seeds 2"):
        refused = last_line(compare(shlex.split(f"compare {fewer} --output out") + limited, tmp_path))
        assert refused.startswith("convnext: out holds another comparison: ")
    more = "compare --vary model.patch_size=1,2 model.kernel_size=3,5 --seeds 2 --output out"
    refused = last_line(compare(shlex.split(more) + limited, tmp_path))
    assert "out holds another comparison, which has convnext_tiny model.patch_size=1" in refused
    # Not after a change of the recipe, which would have been another comparison.
    text = (tmp_path / "out" / "comparison.json").read_text()
    assert json.loads(text) == grown
    lr = grown["contenders"][0]["settings"]["optimizer"]["lr"]
    (tmp_path / "out" / "comparison.json").write_text(text.replace(f'"lr": {lr}', '"lr": 0.5'))
    more = "compare --vary model.patch_size=1,2 --seeds 3 --output out"
    refused = last_line(compare(shlex.split(more) + limited, tmp_path))
    assert f"out cannot grow: of convnext_tiny model.patch_size=1 optimizer.lr was 0.5, is now {lr}." in refused


def test_what_is_varied_may_grow_in_another_order(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    varied = {"model.kernel_size": ("3", "5"), "model.patch_size": ("1",)}
    given = {"data.workers": 0, "model.depths": [1, 1], "model.dims": [4, 8]}
    asked = Definition(recipe="digits", given=given, vary=varied, seeds=1)
    with StopSignals(tmp_path) as signals:
        before = make_plan(asked, output, signals, 1, [])
        turned = {"model.patch_size": ("1", "2"), "model.kernel_size": ("5", "3")}
        after = make_plan(asked.model_copy(update={"vary": turned}), output, signals, 1, [], before)
        labels = {each.label for each in after.contenders}
        assert {each.label for each in before.contenders} < labels
        assert len(labels) == 4
        more = asked.model_copy(update={"vary": turned, "seeds": 2})
        again = make_plan(more, output, signals, 1, [], after)
        assert [each.label for each in again.contenders] == [each.label for each in after.contenders]
        with pytest.raises(SettingsError, match=r"epochs was 40, is now 2"):  # which no budget has chosen
            make_plan(more.model_copy(update={"given": {**given, "epochs": 2}}), output, signals, 1, [], again)


def test_a_folder_of_something_else_is_left_alone(whole: Path, tmp_path: Path) -> None:
    other = compare([*PATCHES, *TINY, "--model.kernel-size", "5"], whole)
    assert last_line(other) == (
        "convnext: out holds another comparison: model.kernel_size was not given, now 5. Give --output a new folder"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").touch()
    assert "out is there already, and holds no comparison" in last_line(compare([*PATCHES, *TINY], tmp_path))


def test_folds(tmp_path: Path) -> None:
    args = [*shlex.split("compare --vary model.patch_size=1,2 --folds 3 --output out --parallel 2"), *TINY]
    ended = compare(args, tmp_path)
    assert ended.status == 0, ended.text
    assert [(cell["settings"]["model.patch_size"], cell["seed"]) for cell in cells(tmp_path)] == [(1, 0), (2, 0)] * 3
    found = results(tmp_path)
    counts = [each["report"]["count"] for name, each in found.items() if "patch_size=1" in name]
    assert sum(counts) == 1797
    tests = [each["last fingerprints"]["test"] for each in found.values()]
    assert len(set(tests)) == 3
    assert len(list((tmp_path / "out" / "logs").iterdir())) == 6
    # Over all images, each of which was tested once: not the mean of the folds.
    assert main(["compare", "--report", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    hits = {
        size: sum(
            each["report"]["top1"] * each["report"]["count"] for name, each in found.items() if f"size={size}-" in name
        )
        for size in (1, 2)
    }
    assert {one["name"]: one["top1"]["mean"] for one in report["contenders"]} == pytest.approx(
        {f"convnext_tiny model.patch_size={size}": count / 1797 for size, count in hits.items()}
    )
    (pair,) = report["pairs"]
    assert abs(pair["difference"]) == pytest.approx(abs(hits[1] - hits[2]) / 1797)


def test_the_learning_rate_is_chosen_on_the_validation_split(tmp_path: Path) -> None:
    args = ["compare", "--learning-rates", "1e-4", "2e-2", "--seeds", "2", "--output", "out", *TINY]
    ended = compare(args, tmp_path)
    assert ended.status == 0, ended.text
    found = results(tmp_path)
    assert len(found) == 3  # the best one's first training is a cell
    accuracy = {float(name.split("=")[1].split("-seed")[0]): each["metrics"][-1]["val_top1"]
                for name, each in found.items() if name.endswith("seed0")}  # fmt: skip
    best = max(accuracy, key=accuracy.__getitem__)
    assert [(cell["settings"], cell["seed"]) for cell in cells(tmp_path)] == [
        ({"optimizer.lr": best}, seed) for seed in (0, 1)
    ]
    assert f"optimizer.lr {best:g} by val top1" in ended.text
    ended = compare([*args, "--data.val-fraction", "0", "--output", "none"], tmp_path)
    assert "--learning-rates are chosen on the validation split, and there is none" in last_line(ended)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("budget", ["2s", "6e8flop"])
def test_the_epochs_follow_from_the_budget_once(budget: str, tmp_path: Path) -> None:
    tiny = shlex.split(shlex.join(TINY).replace("--epochs 1 ", ""))
    args = [*shlex.split(f"compare --vary model.patch_size=1,2 --seeds 1 --budget {budget} --output out"), *tiny]
    ended = compare(args, tmp_path)
    assert ended.status == 0, ended.text
    plan = json.loads((tmp_path / "out" / "comparison.json").read_text())
    epochs = [contender["settings"]["epochs"] for contender in plan["contenders"]]
    if budget.endswith("flop"):
        assert epochs[1] > 2 * epochs[0] > 0  # a patch of four pixels in place of one
    trained = [
        len(read_metrics(tmp_path / "out" / "runs" / f"convnext_tiny-model.patch_size={size}-seed0")) for size in (1, 2)
    ]
    assert trained == epochs
    before = (tmp_path / "out" / "comparison.json").read_bytes()
    assert compare(args, tmp_path).status == 0
    assert (tmp_path / "out" / "comparison.json").read_bytes() == before


def test_the_report_is_drawn_anew(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole)
    assert main(["compare", "--report", "out", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"report.json", "report.html", "report.md"}
    drawn = json.loads((tmp_path / "report.json").read_text())["cells"]
    assert [{key: cell[key] for key in cells(whole)[0]} for cell in drawn] == cells(whole)
    for cell in drawn:
        assert cell["top1"] == json.loads((Path(cell["run"]) / "test_report.json").read_text())["top1"]


def test_a_report_on_runs_by_hand(whole: Path, tmp_path: Path) -> None:
    runs = sorted((whole / "out" / "runs").iterdir())
    ended = compare(["compare", "--report", *map(str, runs), "--output", str(tmp_path)], tmp_path)
    assert ended.status == 0, ended.text
    ended = compare(["compare", "--report", *map(str, runs), "--output", str(whole / "out")], tmp_path)
    assert "out holds the report of another comparison: give --output a folder for this one" in last_line(ended)
    ended = compare(["compare", "--report", *map(str, runs)], tmp_path)
    assert ended.status == 0, ended.text
    assert (tmp_path / "comparison-of-runs" / "report.json").exists()
    (tmp_path / "out").symlink_to(tmp_path)
    shown = {(cell["settings"]["model.patch_size"], cell["seed"]): Path(cell["run"]).name for cell in cells(tmp_path)}
    assert shown == {
        (cell["settings"]["model.patch_size"], cell["seed"]): Path(cell["run"]).name for cell in cells(whole)
    }


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ("", "compare under which recipe? --recipe NAME; known: "),
        ("--recipe digts", "no recipe is called 'digts': did you mean digits?"),
        ("--recipe digits --models resnet18 resnet18", "resnet18 is compared with itself"),
        ("--recipe digits --models resnet19", "no model is called 'resnet19': did you mean resnet18"),
        ("--recipe digits --models timm:resnet_18", "timm has no model 'resnet_18': did you mean"),
        ("--recipe digits --models timm:resnet18 --optimizer.name muon", "timm:resnet18: optimizer.name: muon is for"),
        ("--recipe digits --vary optimizer.lr", "--vary optimizer.lr: write NAME=VALUE,VALUE"),
        ("--recipe digits --vary optimiser.lr=1,2", "no setting is called optimiser.lr: did you mean optimizer.lr?"),
        ("--recipe digits --vary optimizer.lr=1e-3,much", "optimizer.lr: input should be a valid number"),
        ("--recipe digits --vary seed=1,2", "--vary seed: a comparison sets that itself (--seeds)"),
        ("--recipe digits --name x", "--name: a comparison sets that itself"),
        ("--recipe digits --epochs 2 --budget 3min", "epochs is chosen by --budget: leave one of them out"),
        ("--recipe digits --budget long", "--budget long: write a time or operations: 90s, 30min, 2h or 2e15flop"),
        ("--recipe digits --seeds 0", "--seeds is at least 1, got 0"),
        ("--recipe digits --parallel 0", "--parallel is at least 1, got 0"),
        ("--recipe digits --folds 1", "data.folds: input should be greater than or equal to 2"),
        ("--recipe cifar10", "needs its folder: give --data.root DIR"),
        ("--report nowhere", "nowhere is no run and has none"),
        ("--report nowhere --seed 1", "--report trains nothing: leave --seed out"),
        ("--report nowhere --seeds 2", "--report trains nothing: leave --seeds out"),
        ("--report nowhere --one-at-a-time --models resnet18", "--report trains nothing: leave --models out"),
    ],
)
def test_a_mistake_is_one_line(args: str, problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *args.split(), *([] if "report" in args else ["--output", str(tmp_path / "out")])]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert problem in lines[-1]
    assert not (tmp_path / "out").exists()
