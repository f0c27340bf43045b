"""A report says what the runs' own files say, and what is missing."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convnext
from convnext.comparison.cell import Cell
from convnext.comparison.report import write_report
from convnext.comparison.results import names
from convnext.errors import DataError, SettingsError, UserError

BAD = "<b>a|b</b>"


def right(run: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    with (run / "test_predictions.csv").open() as file:
        return np.array([row["true"] == row["predicted"] for row in csv.DictReader(file)])


@pytest.fixture(scope="module")
def cells(better: Path, worse: Path) -> list[Cell]:
    return [Cell(BAD, run=better), Cell("small", run=worse), Cell("failed", problem="no memory <i>")]


@pytest.fixture(scope="module")
def output(cells: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reports") / "new" / "report"
    write_report(cells, output, missing=["the search of small"])
    return output


def test_json_has_the_counts_of_the_runs(output: Path, better: Path, worse: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    first, second, failed = report["cells"]
    for cell, run in ((first, better), (second, worse)):
        own = json.loads((run / "test_report.json").read_text())
        assert cell["top1"] == pytest.approx(right(run).mean()) == pytest.approx(own["top1"])
        assert cell["macro_f1"] == pytest.approx(own["macro_f1"])
        assert cell["run"] == str(run)
        assert cell["seconds"] > 0
        assert cell["flops"] == cell["points"][-1]["flops"]
    assert (failed["model"], failed["seed"], failed["settings"]) == ("failed", 0, {})
    assert failed["top1"] is failed["run"] is failed["flops"] is None
    (pair,) = report["pairs"]
    assert (pair["a"], pair["b"]) == (BAD, "small")
    assert pair["difference"] == pytest.approx(right(better).mean() - right(worse).mean())
    assert pair["low"] < pair["difference"] < pair["high"]
    assert pair["significant"] is (pair["p"] < 0.05) is True
    assert report["conclusion"].startswith(f"{BAD} is better than small by ")
    own = json.loads((worse / "test_report.json").read_text())
    recalls = {name: row["recall"] for name, row in own["per_class"].items()}
    assert report["contenders"][1]["recall"] == pytest.approx(recalls)
    assert report["missing"][:2] == ["the search of small", "failed, seed 0: no memory <i>"]


def test_names_are_shown_as_they_are(output: Path) -> None:
    markdown, page = ((output / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "<b>a" not in page
    assert "&lt;b&gt;a|b&lt;/b&gt;" in page
    assert "<b>" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith(r"| &lt;b>a\|b&lt;/b>")]
    assert rows
    assert "no memory &lt;i>" in markdown


def test_markdown_names_pictures_that_are_there(output: Path) -> None:
    markdown = (output / "report.md").read_text()
    pictures = [part.split(")")[0] for part in markdown.split("](")[1:]]
    assert {"differences.png", "accuracy.png", "reliability.png", "classes-1.png"} <= set(pictures)
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_images_are_those_that_one_has_right_and_the_other_wrong(output: Path, better: Path, worse: Path) -> None:
    ours, theirs = right(better), right(worse)
    markdown = (output / "report.md").read_text()
    section = markdown[markdown.index("## Images") :].split("### ")
    assert f"\n{(ours & ~theirs).sum()} images; the 12 whose" in section[1]
    shown = [int(line.split(":")[0].removeprefix("- #")) for line in section[1].splitlines() if line.startswith("- #")]
    assert len(shown) == 12
    assert all(ours[shown] & ~theirs[shown])
    assert (output / "report.html").read_text().count("data:image/png") >= 12


def test_seeds_are_put_together(cells: list[Cell], better: Path, tmp_path: Path) -> None:
    run = shutil.copytree(better, tmp_path / "again", symlinks=True)
    many = [
        *cells[:2],
        replace(cells[0], seed=1, run=run),
        replace(cells[1], seed=1, run=None),
        replace(cells[1], seed=2, run=run),
    ]
    write_report(many, tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["seeds"] for one in report["contenders"]] == [[0, 1], [0, 2]]
    assert report["contenders"][0]["top1"]["std"] == pytest.approx(0)
    assert report["missing"] == ["small, seed 1: not done yet"]
    assert report["pairs"][0]["seeds"] == 1  # seed 0 is the one that both have
    assert "With one seed this is about these trained weights only" in report["conclusion"]


def test_runs_with_one_seed_or_other_images_are_refused(cells: list[Cell], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"are both of small with seed 0: leave one of them out"):
        write_report([cells[1], cells[1]], tmp_path)
    other = convnext.train(convnext.recipe("digits", epochs=1, output=tmp_path, **{"data.test_fraction": 0.3}))
    with pytest.raises(DataError, match=r"were tested on different images \(360 and 540\)"):
        write_report([cells[0], Cell("other", run=other.path)], tmp_path)


def test_settings_that_differ_are_shown(cells: list[Cell], better: Path, tmp_path: Path) -> None:
    run = shutil.copytree(better, tmp_path / "run", symlinks=True)
    settings = json.loads((run / "settings.json").read_text())
    settings["optimizer"]["weight_decay"] = 0.25
    settings["precision"] = "bf16"
    settings["data"]["workers"] = 7  # which changes nothing
    (run / "settings.json").write_text(json.dumps(settings))
    (run / "comparison.safetensors").unlink()
    write_report([cells[0], Cell("other", run=run), replace(cells[0], seed=1, run=run)], tmp_path / "report")
    markdown = (tmp_path / "report" / "report.md").read_text()
    table = markdown.split("What each was trained with")[1].split("\n\n")[1].splitlines()
    head, rows = table[0].split(" | "), {line.split(" | ")[0]: line.split(" | ") for line in table[2:]}
    other, both = (next(row for name, row in rows.items() if word in name) for word in ("other", "a"))
    assert other[head.index("precision")] == "bf16"
    assert both[head.index("precision")] == "fp32 / bf16"
    assert "0.25" in other[next(i for i, name in enumerate(head) if "weight" in name and "decay" in name)]
    assert not any("workers" in name for name in head)


def test_seeds_that_were_trained_on_different_images_are_refused(cells: list[Cell], tmp_path: Path) -> None:
    settings = convnext.recipe("digits", epochs=1, seed=1, output=tmp_path, **{"data.val_fraction": 0.3})
    other = convnext.train(settings)
    with pytest.raises(DataError, match=r"are both of small and were trained on different images"):
        write_report([cells[1], Cell("small", seed=1, run=other.path)], tmp_path)


def test_a_run_that_cannot_be_measured_is_missing(cells: list[Cell], better: Path, tmp_path: Path) -> None:
    run = shutil.copytree(better, tmp_path / "run", symlinks=True)
    weights = run / "checkpoints" / "last" / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"no weights")
    (run / "comparison.safetensors").unlink()
    write_report([cells[0], Cell("damaged", run=run)], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["missing"][0].startswith(f"damaged, seed 0: {run}")
    assert report["pairs"] == []
    assert "alone has finished" in report["conclusion"]
    write_report([Cell("later")], tmp_path)
    assert "No contender has finished" in (tmp_path / "report.html").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --output"):
        write_report(cells, tmp_path / "file")


def test_a_contender_is_called_by_what_varies() -> None:
    cells = [Cell("net", {"lr": lr, "depths": [1, 2]}) for lr in (0.1, 0.2)] + [Cell("other", {"lr": 0.1})]
    assert names(cells) == ["net lr=0.1", "net lr=0.2", "other"]
    assert names([Cell("net", {"depths": [1, 2]}), Cell("net", {"depths": [3, 4]})]) == [
        "net depths=1,2",
        "net depths=3,4",
    ]
    assert names([Cell("net"), Cell("net", {"ema_decay": None})]) == ["net", "net ema_decay=None"]
