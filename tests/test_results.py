"""What results/ says holds together: every run has its run.json, whose numbers are those of its reports, of the recipes
that name it, and of the tables."""

import json
import re
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from convnext import recipes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import comparison
import speed_tables
import tables
from run_json import ROOT, Machine, Number, Run, TableError, runs

RUNS = runs()
STATED = [(name, measured) for name in recipes.names() for measured in recipes.get(name).measured]


def test_every_folder_that_holds_something_has_a_run() -> None:
    for path in (ROOT / "results").rglob("*"):
        if path.is_file() and path.name != "README.md":
            folder = path.parent.parent if re.fullmatch(r"seed-\d+", path.parent.name) else path.parent
            assert (folder / "run.json").is_file(), path


@pytest.mark.parametrize("where", RUNS)
def test_a_run_has_the_numbers_of_its_reports(where: str) -> None:
    run, folder = RUNS[where], ROOT / "results" / where
    found = tables.reports(folder, run)
    assert len(found) == (len(run.seeds) if list(folder.rglob("*_report.json")) else 0)
    for key in ("top1", "macro_f1") if found else ():
        assert run.values(key) == [json.loads(path.read_bytes())[key] for path in found]
    if (folder / "test-flip_report.json").is_file():
        flipped = json.loads((folder / "test-flip_report.json").read_bytes())
        assert (run.values("top1_flip"), run.values("macro_f1_flip")) == ([flipped["top1"]], [flipped["macro_f1"]])


@pytest.mark.parametrize("where", [where for where in RUNS if where.startswith("speed/")])
def test_a_ratio_is_that_of_its_numbers(where: str) -> None:
    for key in (key for key in RUNS[where].numbers if key.startswith("ratio_")):
        peer, kind = key.removeprefix("ratio_"), ""
        if not RUNS[where].values(f"{peer}_ms") + RUNS[where].values(f"{peer}_images_per_second"):
            peer, _, kind = peer.rpartition("_")  # ours of that kind, against the peer's
        ours = f"ours_{kind}".rstrip("_")
        if times := RUNS[where].values(f"{peer}_ms"):
            expected = times[0] / RUNS[where].values(f"{ours}_ms")[0]
        else:
            rates = [RUNS[where].values(f"{name}_images_per_second")[0] for name in (ours, peer)]
            expected = rates[0] / rates[1]
        assert RUNS[where].values(key) == [pytest.approx(expected, abs=0.006)]


@pytest.mark.parametrize(("name", "measured"), STATED, ids=[name for name, _ in STATED])
def test_a_recipe_states_what_its_run_reached(name: str, measured: recipes.Measured) -> None:
    run = RUNS[measured.folder.removeprefix("results/")]
    checked = 0
    for pattern, values in (
        (r"(?:([\d.]+) to )?([\d.]+) % top-1", [100 * value for value in run.values("top1")]),
        (r"(?:([\d.]+) to )?([\d.]+) macro-F1", run.values("macro_f1")),
        (r"in (?:([\d.]+) to )?([\d.]+) minutes of one core", run.values("cpu_minutes")),
    ):
        for low, high in re.findall(pattern, measured.text):
            check_rounded(high, max(values))
            check_rounded(low or high, min(values))
            checked += 1
    assert checked, f"{name} states no number that can be checked: {measured.text}"


def check_rounded(text: str, value: Number) -> None:
    decimals = len(text.partition(".")[2])
    assert text == f"{value:.{decimals}f}"


def test_the_tables_are_up_to_date() -> None:
    assert tables.stale() == [], "run: python benchmarks/tables.py"


RUN = {
    "command": "convnext train digits --seed SEED",
    "commit": "66115c3",
    "date": "2026-11-22",
    "machine": {"name": None, "cores": 2, "memory_gb": 24, "gpu": None},
    "data": "digits, 8 px; 360 for the test",
    "seeds": [0, 1],
    "minutes": 1.5,
    "numbers": {"top1": [0.98, 0.99], "parameters": 352522},
    "note": "",
}


def test_a_run_has_exactly_its_keys_and_types() -> None:
    assert Run.model_validate_json(json.dumps(RUN)).values("top1") == [0.98, 0.99]
    wrong = [RUN | {"seconds": 3}, *({key: RUN[key] for key in RUN if key != left_out} for left_out in RUN)]
    wrong += [RUN | {"minutes": "1.5"}, RUN | {"date": "yesterday"}, RUN | {"commit": "main"}, RUN | {"numbers": {}}]
    wrong += [RUN | {"numbers": {"top1": [0.98, 0.99, 1.0]}}, RUN | {"machine": {"name": "a laptop"}}]
    for each in wrong:
        with pytest.raises(ValidationError):
            Run.model_validate_json(json.dumps(each))


def test_a_region_is_filled_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    text = "# Title\n\n<!-- table: measured -->\nold\n<!-- end -->\n\n`<!-- table: NAME -->` marks a table.\n"
    for name in ("README.md", "results/README.md", "docs/results.md"):
        (tmp_path / name).write_text(text)
    (tmp_path / "docs" / "none.md").write_text("No table.\n")
    assert [path.name for path in tables.stale(tmp_path)] == ["README.md", "README.md", "results.md"]
    for name, cell in (
        ("README.md", "[`digits`](results/digits/convnext)"),
        ("results/README.md", "[`digits`](digits/convnext)"),
        ("docs/results.md", "[`digits`](../results/digits/convnext)"),
    ):
        new = tables.filled(tmp_path / name, tmp_path)
        assert f"| {cell} | scikit-learn's digits, 8 px | " in new
        assert "98.89 to 99.72 % (3 seeds)" in new
        assert "old" not in new
        assert new.startswith("# Title\n\n<!-- table: measured -->\n| recipe | ")
        assert new.endswith(" |\n<!-- end -->\n\n`<!-- table: NAME -->` marks a table.\n")
        (tmp_path / name).write_text(new)
    assert tables.stale(tmp_path) == []


@pytest.mark.parametrize("text", ["<!-- table: measured -->\n", "<!-- table: nothing -->\n<!-- end -->\n"])
def test_a_region_that_cannot_be_filled_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(TableError, match=r"README\.md: (the|a|no) table"):
        tables.filled(path, tmp_path)


def test_check_names_what_is_out_of_date_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "<!-- table: recipes -->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(text)
    assert tables.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == "README.md\n"
    assert (tmp_path / "README.md").read_text() == text
    assert tables.main([], tmp_path) == 0
    assert "| `digits` | " in (tmp_path / "README.md").read_text()
    capsys.readouterr()
    assert tables.main(["--check"], tmp_path) == 0
    assert capsys.readouterr().out == ""


def test_the_report_of_a_comparison_is_kept_without_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, results = tmp_path / "made", tmp_path / "repository" / "results"
    made.mkdir()
    cells = [
        {"contender": name, "seed": seed, "run": f"{made}/runs/{seed}", "top1": top1 + seed / 100, "seconds": 90.0}
        | {"parameters": 2_000_000, "forward_flops": 2e8, "points": [{"epoch": 3}]}
        for seed in (0, 1)
        for name, top1 in (("ours", 0.5), ("swin_t lr=1", 0.6))
    ]
    how = {"command": f"convnext compare --data.root {tmp_path}/images --output {made}", "made": "2026-11-26 12:57 UTC"}
    how |= {"data": "digits", "measured on": "a CPU, 2 threads", "torch": "2", "commit": "1234567-dirty"}
    contenders = [{"name": n, "top1": {"mean": m, "std": 0.007}} for n, m in (("ours", 0.505), ("swin_t lr=1", 0.605))]
    pair = {"a": "swin_t lr=1", "b": "ours", "difference": 0.1, "low": 0.09, "high": 0.12, "significant": True}
    report = {"cells": cells, "contenders": contenders, "pairs": [pair], "missing": [], "how": how}
    for name in ("report.json", "report.md"):
        (made / name).write_text(json.dumps(report))
    monkeypatch.setattr(comparison, "ROOT", results.parent)
    monkeypatch.setattr(speed_tables, "ROOT", results.parent)
    monkeypatch.setattr(speed_tables, "runs", lambda: runs(results))
    words = ["comparison.py", str(made), "models", "--root", f"{tmp_path}/images"]
    monkeypatch.setattr(sys, "argv", words)
    comparison.main()
    assert not any(str(tmp_path) in path.read_text() for path in results.rglob("*.*"))
    run = runs(results)["comparison/models"]
    assert run.command == "convnext compare --data.root DIR --output comparison"
    assert (run.commit, run.minutes) == (None, 1.5)  # its code had changes that are in no commit
    assert run.machine == Machine(name="a CPU", cores=None, memory_gb=None, gpu=None)
    assert run.numbers == {"ours_top1": [0.5, 0.51], "swin_t_lr_1_top1": [0.6, 0.61]}
    table = speed_tables.comparison(lambda name, where: f"[{name}]({where})", "comparison/models").splitlines()
    assert table[2] == "| ours | 50.50 ± 0.70 % | | 2.00 M | 0.100 | 3 | 1.5 min |"
    assert table[3].startswith("| swin_t lr=1 | 60.50 ± 0.70 % | **+10.00 (+9.00 to +12.00)** | 2.00 M |")
    assert table[5].startswith("[Report](comparison/models); 2 seeds; ")
    (made / "report.json").write_text(json.dumps(report | {"pairs": [pair | {"a": "ours", "b": "swin_t lr=1"}]}))
    comparison.main()
    table = speed_tables.comparison(lambda name, _: name, "comparison/models").splitlines()
    assert "| **-10.00 (-12.00 to -9.00)** |" in table[3]
    (made / "report.json").write_text(json.dumps(report | {"cells": [cell | {"fold": cell["seed"]} for cell in cells]}))
    comparison.main()
    written = json.loads((results / "comparison" / "models" / "run.json").read_text())
    assert written["numbers"] == {"ours_top1": 0.505, "swin_t_lr_1_top1": 0.605}
    with pytest.raises(TableError, match="results/comparison/other has no"):
        speed_tables.comparison(lambda name, _: name, "comparison/other")
    (made / "report.json").write_text(json.dumps(report | {"missing": ["one"]}))
    with pytest.raises(SystemExit):
        comparison.main()
    assert (results / "comparison/models/run.json").is_file()
