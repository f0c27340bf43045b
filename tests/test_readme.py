"""README and CONTRIBUTING hold: their programs run, and what README states of recipes is what they state."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import convnext
from convnext import recipes
from tests.support.texts import ROOT, blocks

README = ROOT / "README.md"


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_recipes_in_the_readme_exist_with_what_was_published() -> None:
    section = README.read_text(encoding="utf-8").partition("## Which recipe")[2].partition("\n## ")[0]
    ours, theirs = section.split("published, not run here |")
    for name in re.findall(r"`([\w-]+)`", re.sub(r"`-.*?`", "", ours)):
        assert recipes.get(name).published is None
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|$", theirs, re.MULTILINE)
    for cell, text in rows:
        numbers = [float(number) for number in re.findall(r"\d+\.\d+|\d\d", text)]
        short = re.findall(r"`(-?[\w-]+)`", cell.partition(" (")[0])
        for name in (short[0].partition("-")[0] + each if each[0] == "-" else each for each in short):
            recipe = recipes.get(name)
            assert recipe.published is not None
            values = recipe.published.values
            own = (
                [min(values.values()), max(values.values())] if " to " in text else [values[recipe.settings.model.name]]
            )
            assert set(own) <= set(numbers), name
    assert len(rows) >= 6


def test_the_readmes_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = [block.text for block in blocks(README) if block.language == "python"]
    assert "epochs=5" in program
    Image.fromarray((load_digits().images[7] * 255 / 16).astype(np.uint8)).save(tmp_path / "seven.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program.replace("epochs=5", "epochs=1"), "README.md", "exec"), names)
    assert (tmp_path / "runs" / "digits" / "test_report.json").is_file()
    assert names["run"].settings.epochs == 1
    assert len(names["predictions"]) == 3
    assert names["model"].head.out_features == 10


def test_what_contributors_are_shown_works(tmp_path: Path) -> None:
    package = shutil.copytree(Path(convnext.__file__).parent, tmp_path / "convnext")
    texts = [block.text for block in blocks(ROOT / "CONTRIBUTING.md")]
    files = {match[1]: text for text in texts if (match := re.match(r"# (convnext/\S+\.py)\n", text))}
    assert len(files) == 4
    for path, text in files.items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text)
    (line,) = (text for text in texts if text.startswith('    "classes"'))
    before = '    "convert":'
    source = (package / "cli.py").read_text()
    (package / "cli.py").write_text(source.replace(before, line + before))
    for name, shade in {"daisy": 255, "rose": 80}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (40, 40), (shade, 10 * number, 0)).save(tmp_path / "images" / name / f"{number}.png")

    def run(*args: str) -> str:
        words = [sys.executable, "-m", "convnext", *args]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("train", "flowers-mynet", "--data.root", "images", "--epochs", "1", "--trackers", "--data.workers", "0")
    assert run("classes", "runs/flowers-mynet") == "daisy\nrose\n"
    assert "classes    Print the classes" in run("--help")
