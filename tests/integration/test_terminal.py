"""What reaches a terminal: names that would move its cursor, streams that are closed or narrow, 80 columns."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from convnext.cli import main
from convnext.output import counted, escaped, few

COMMAND = [sys.executable, "-m", "convnext"]
EVIL = "a\x1b[2J\n\r\x9b5m\u202egnp.:dog: [red]x[bold]"
SHOWN = "a\\x1b[2J\\n\\r\\x9b5m\\u202egnp.:dog: [red]x[bold]"
FILE, FILE_SHOWN = f"{EVIL}\udcff", f"{SHOWN}\\udcff"  # which is no UTF-8
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_escaped_leaves_what_can_be_read() -> None:
    for text in ("plain", "naïve", "日本語", "a\u200cb", "👩‍🚀", ":dog: [red]", r"back\slash", "two  spaces"):
        assert escaped(text) == text
    assert escaped(FILE) == FILE_SHOWN


def test_names_with_commas_can_be_counted() -> None:
    assert few([]) == "no names"
    assert few(["cat", "lion, king of beasts", "dog"]) == 'cat, "lion, king of beasts", dog'
    assert few(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_one_is_no_plural() -> None:
    assert [counted(1, "step"), counted(2000, "step"), counted(2, "class")] == ["1 step", "2,000 steps", "2 classes"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs x", "--epochs takes a whole number, not 'x'"),
        ("--optimizer.lr x", "--optimizer.lr takes a number, not 'x'"),
        ("--loss.class-weights balance", "--loss.class-weights takes none or balanced or numbers, not 'balance'"),
        ("--model.dims a b", "--model.dims takes None or whole numbers, not 'a', 'b'"),
        ("--gradient-accumulation x", "--gradient-accumulation takes a whole number or auto, not 'x'"),
        ("--precision bf61", "--precision takes auto, fp32, bf16 or fp16, not 'bf61': did you mean bf16?"),
        ("--device cude", "--device takes auto, cpu, cuda or mps, not 'cude': did you mean cuda?"),
        ("--data.cache ram", "--data.cache takes none or disk, not 'ram'"),
    ],
)
def test_a_value_of_another_kind(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *option.split()]) == 2
    assert capsys.readouterr().err == f"convnext: {message} (see convnext train digits --help)\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_mistakes_are_one_line_in_any_encoding(encoding: str) -> None:
    for option, message in (
        ("--epoch 1", "no option is called --epoch: did you mean --epochs?"),
        ("--seed x", "--seed"),
    ):
        command = [*COMMAND, "train", "digits", *option.split()]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": encoding})
        assert done.returncode == 2
        assert done.stderr.startswith(f"convnext: {message}")
        assert done.stderr.endswith(" (see convnext train digits --help)\n")
        assert "---" not in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_folder_is_no_data_set_but_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", str(tmp_path)]) == 2
    assert f"convnext datasets check {tmp_path}" in capsys.readouterr().err
    assert main(["check", str(tmp_path)]) == 2
    assert "did you mean datasets?" in capsys.readouterr().err


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with a run on them: folder, classes, files and run are called `EVIL`."""
    root = tmp_path_factory.mktemp("terminal")
    for label, name in enumerate((EVIL, f"{EVIL}2")):
        folder = root / EVIL / name
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("L", (16, 16), 20 * number + label).save(folder / f"{FILE}{number}.png")
        (folder / f"bad{FILE}.png").write_text("no image")
    return root


def strings_in(value: object) -> str:
    """All strings in what JSON holds, in one."""
    if isinstance(value, dict):
        return "".join(map(strings_in, value.values()))
    return "".join(map(strings_in, value)) if isinstance(value, list) else str(value)


def test_no_command_lets_a_name_reach_the_terminal(
    evil_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(evil_run)
    run, images = f"runs/{EVIL}", f"{EVIL}/{EVIL}2"

    def output(status: int, *args: str) -> str:
        assert main([*args]) == status
        out, err = capfd.readouterr()
        assert not RAW.search(out + err)
        return out + err

    small = ["--model.depths", "1", "1", "--model.dims", "8", "16", "--epochs", "1", "--data.image-size", "16"]
    small += ["--data.workers", "0", "--trackers"]
    trained = output(0, "train", "folder", "--data.root", EVIL, *small, "--name", EVIL)
    assert f"left out: {SHOWN}/{SHOWN}" in trained
    assert f"run folder runs/{SHOWN}" in trained
    assert f"  {SHOWN}2   " in output(0, "evaluate", run, "--data.workers", "0")
    predicted = output(2, "predict", run, images)
    assert f"  {SHOWN}/{SHOWN}2/{FILE_SHOWN}0.png   " in predicted
    assert f"convnext: {SHOWN}/{SHOWN}2/bad{FILE_SHOWN}.png: unreadable image" in predicted
    assert SHOWN in output(0, "runs")
    assert f"2: {SHOWN}, {SHOWN}2" in output(0, "inspect", run)
    assert f"bad{FILE_SHOWN}.png" in output(1, "datasets", "check", EVIL, "--workers", "0")
    assert f"{SHOWN}.pth" in output(0, "convert", run, f"{EVIL}.pth")
    for command in ("evaluate", "predict", "inspect", "convert", "recipes", "models", "datasets", "train"):
        assert "\\x1b" in output(2, command, EVIL, *([EVIL] if command in ("predict", "convert") else []))
    assert "\\x1b" in output(2, EVIL)
    for args in (["runs", "--json"], ["inspect", run, "--json"], ["predict", run, f"{images}/{FILE}0.png", "--json"]):
        assert EVIL in strings_in(json.loads(output(0, *args)))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("args", [["models"], ["recipes"], ["datasets"], ["train", "digits", "--help"], ["--help"]])
def test_a_character_that_the_encoding_lacks_is_replaced(encoding: str, args: list[str]) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*COMMAND, *args], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    done.stdout.decode(encoding)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&-", "2>/dev/full"])
@pytest.mark.parametrize(("args", "status"), [("recipes digits", 0), ("train --help", 0), ("train digits --x", 2)])
def test_closed_streams_lead_nowhere(redirection: str, args: str, status: int) -> None:
    done = subprocess.run(f"{' '.join(COMMAND)} {args} {redirection}", shell=True, capture_output=True, text=True)
    assert done.returncode == status
    expected = {"stdout": status == 0 and not redirection.startswith(">"), "stderr": status and "2>" not in redirection}
    assert bool(done.stdout) == expected["stdout"]
    assert done.stderr.count("\n") == int(bool(expected["stderr"]))


@pytest.mark.parametrize("args", ["recipes digits", "models", "--help", "train digits --help"])
def test_output_that_cannot_be_written_is_one_line(args: str) -> None:
    done = subprocess.run(f"{' '.join(COMMAND)} {args} >/dev/full", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output: No space left on device" in done.stderr
    piped = subprocess.run(
        f"set -o pipefail; {' '.join(COMMAND)} {args} | head -1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
    )
    assert (piped.returncode, piped.stderr) == (0, b"")


def on_terminal(*args: str, columns: int = 80) -> list[str]:
    """The lines that a command prints on a terminal of so many columns, without colours."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns)}
    process = subprocess.Popen([*COMMAND, *args], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    output = b""
    while True:
        try:
            block = os.read(controller, 1 << 16)
        except OSError:  # Linux: all of it was read
            break
        if not block:
            break
        output += block
    os.close(controller)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()).replace("\r", "").splitlines()


@pytest.mark.parametrize("command", [["recipes"], ["models"], ["datasets"], ["--help"], ["train", "--help"]])
def test_no_word_is_broken_at_80_columns(command: list[str]) -> None:
    lines = on_terminal(*command)
    whole = subprocess.run([*COMMAND, *command], capture_output=True, text=True).stdout
    assert max(len(line.rstrip()) for line in lines) <= 80
    printed = "\n".join(lines)
    assert {word for word in re.findall(r"[\w/.-]+", whole) if word not in printed} == set()
