"""What single scripts of ``benchmarks/`` count, write down and refuse. What they measure is not tested."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import budget
import cold_start
import comparison
import record
import serving
import speed_tables
import tables
from command import run_command
from record import write_run
from run_json import Machine, Run

from convnext.errors import UserError
from convnext.inference.predictor import Prediction


def arguments(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """Those of the script."""
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])


def test_an_answer_after_the_time_counts_for_the_latency_alone() -> None:
    body = json.dumps({"results": [{"predictions": [{"class": "cat", "probability": 1.0}]}]}).encode()
    tally = serving.Tally()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"image")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async def ask() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = serving.Client(port, [serving.Case(b"image", [Prediction("cat", 1.0)])], 0, tally, mixed=False)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for ends in (time.monotonic() + 600, time.monotonic() - 1):
                await client.ask(reader, writer, ends)
            writer.close()

    asyncio.run(ask())
    assert (len(tally.seconds), tally.answered, tally.faults) == (2, 1, [])
    assert tally.rate(0.5) == 2.0
    with pytest.raises(UserError, match="no image was answered within 3 s"):
        serving.Tally().rate(3)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"did not start: .*{tmp_path / 'none'}"),
        serving.serving(str(tmp_path / "none")),
    ):
        pass


def test_the_serving_benchmark_needs_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "uncommitted", lambda: "")
    arguments(monkeypatch, "serving.py", "runs/none", "--machine", "here", "--images", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        serving.main()
    assert "has no file named *.jpg" in capsys.readouterr().err


def test_a_run_names_the_commit_of_the_code_that_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(name: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        for words in (("add", "."), (*who, "commit", "-q", "-m", name)):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)

    def written() -> Run:
        write_run(tmp_path / "out", {"top1": 1}, data="none", seconds=1, libraries=["numpy", "no-such"], note="a note")
        return Run.model_validate_json((tmp_path / "out" / "run.json").read_bytes())

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit("benchmarks/one.py")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    start = record.commit_of_code()
    monkeypatch.setattr(record, "IMPORTED", start)
    assert start
    assert written().commit == start
    assert written().note.startswith("a note; numpy ")
    assert "no-such" not in written().note
    commit("docs/page.md")
    assert written().commit == start
    (tmp_path / "benchmarks" / "one.py").write_text("changed")
    assert written().commit is None
    commit("benchmarks/two.py")
    assert written().commit is None
    monkeypatch.setattr(record, "IMPORTED", "")
    assert written().commit is None


def test_a_quick_trial_is_not_written_over_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments(monkeypatch, "all.py", "--quick", "--device", "cpu")
    with pytest.raises(SystemExit, match="2"):
        __import__("all").main()
    assert "--quick" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "rounds"), [(["--quick"], 3), (["--rounds", "2"], 2), ([], 5)])
def test_loading_has_the_rounds_that_were_asked_for(
    words: list[str], rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything: Any = __import__("all")
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, json.dumps({"ours": [30], "ours_cached": [60], "timm": [20]}))

    options = ["--only", "loading", "--images", tmp_path, "--device", "cpu", "--machine", "here", "--commit", "a" * 40]
    arguments(monkeypatch, "all.py", *options, "--output", tmp_path / "out", *words)
    with monkeypatch.context() as patched:
        patched.setattr(everything.subprocess, "run", run)
        assert everything.main() == 0
    loading = next(command for command in ran if "--repeat" in command)
    assert loading[loading.index("--rounds") + 1] == str(rounds)
    written = Run.model_validate_json((tmp_path / "out" / "here" / "loading" / "run.json").read_bytes())
    assert written.numbers["ratio_timm_cached"] == 3.0
    assert f"workers of 1 thread; {rounds} rounds" in written.note
    assert "ours by" not in written.note


def test_a_report_is_of_the_machine_that_it_names() -> None:
    here = record.this_machine(uses_gpu=False)
    assert comparison.machine_of(f"{here.name}, 1 thread") == here
    assert comparison.machine_of("Another, 16 threads") == Machine(name="Another", cores=None, memory_gb=None, gpu=None)
    assert comparison.machine_of("No such GPU") == Machine(name=None, cores=None, memory_gb=None, gpu="No such GPU")


@pytest.mark.parametrize(("text", "fault"), [("{", "Expecting"), ("{}", "it has no 'missing'"), ("[]", "list")])
def test_what_is_no_report_of_a_comparison_is_refused(
    text: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("report.json", "report.md"):
        (tmp_path / name).write_text(text)
    target = tmp_path / "repository" / "results" / "comparison" / "models"
    target.mkdir(parents=True)
    monkeypatch.setattr(comparison, "ROOT", tmp_path / "repository")
    arguments(monkeypatch, "comparison.py", tmp_path, "models", "--root", "/data")
    with pytest.raises(UserError, match=f"is no report of convnext compare: .*{fault}"):
        comparison.main()
    assert target.is_dir()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--entries", "ours", "timm", "40ep"], "40ep has settings for tiny-imagenet, not for fashion-mnist"),
        ([], "budget/fashion-mnist is there already"),
        (["--minutes", "0", "--output", "other"], "must be above 0"),
    ],
)
def test_a_budget_is_refused_before_anything_is_trained(
    words: list[str],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "budget" / "fashion-mnist").mkdir(parents=True)
    arguments(monkeypatch, "budget.py", "fashion-mnist", "--root", tmp_path, *words)
    with pytest.raises(SystemExit, match="2"):
        budget.main()
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_text_that_cannot_be_filled_ends_with_another_status_than_one_that_is_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("<!-- table: nothing -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: tables.main(["--check"], tmp_path))
    assert "no table is called nothing" in capsys.readouterr().err


def test_a_prediction_that_fails_is_named() -> None:
    with pytest.raises(UserError, match=r"python -c 1/0: [\s\S]*ZeroDivisionError"):
        cold_start.seconds(["-c", "1/0"])


def test_what_took_no_time_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.model_validate_json(
        json.dumps(
            {
                "command": "python benchmarks/roofline.py",
                "commit": None,
                "date": "2026-11-27",
                "machine": {"name": "a CPU", "cores": 2, "memory_gb": 24, "gpu": None},
                "data": "random; a model",
                "seeds": [],
                "minutes": None,
                "numbers": {"step_ms": 10.0, "rest_ms": 4.0, "stem_downsampling_head_ms": 0.0},
                "note": "",
            }
        )
    )
    monkeypatch.setattr(speed_tables, "runs", lambda: {"roofline/one": run})
    rows = speed_tables.roofline(lambda name, _: name).splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows] == ["rest"]
