"""README and docs hold: their links exist, their commands and settings parse, README's program runs."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import convnext
from convnext import recipes
from convnext.cli import COMMANDS
from convnext.commands.terminal import parse
from convnext.config import RunSettings
from convnext.data.datasets.catalogue import FAMILIES, find_entry
from convnext.models import registry
from convnext.weights.catalogue import find as find_weights

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"^(?:\$ )?(?:\w+=\S+ )*(?:(?:torchrun|accelerate launch) .*-m )?(convnext|sbatch .*docs/train\.sbatch) (.+)$"
)
# Options in the texts that are of torchrun, accelerate and SLURM.
OTHERS = {"--cpu", "--multi_gpu", "--nproc-per-node", "--num_processes", "--nnodes", "--requeue", "--signal", "--batch"}
OTHERS |= {"--max-restarts", "--local-addr", "--rdzv-conf", "--check", "--strict"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(path: Path) -> Iterator[list[str]]:
    """The words behind `convnext` of each command in the fenced blocks."""
    for _, block in FENCED.findall(path.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if match := COMMAND.match(line):
                words = shlex.split(match[2], comments=True)
                yield words if match[1] == "convnext" else ["train", *words]


ALL = [pytest.param(words, id=f"{path.stem}: {' '.join(words)}") for path in TEXTS for words in commands(path)]


class Parsed(Exception):  # noqa: N818
    """What a command made of its words, in place of doing it."""


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that parses a command's words as the command does, and gives its options."""
    for name in ("digits", "folder"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        values = json.loads(recipes.get(name).settings.model_dump_json())
        (tmp_path / "runs" / name / "settings.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)

    def stop(*args: Any, **keywords: Any) -> None:
        raise Parsed(parse(*args, **keywords))

    def run(words: Sequence[str]) -> Any:
        assert words[0] in COMMANDS
        module = f"convnext.commands.{'datasets_check' if words[:2] == ['datasets', 'check'] else words[0]}"
        monkeypatch.setattr(importlib.import_module(module), "parse", stop)
        with pytest.raises(Parsed) as caught:
            importlib.import_module(f"convnext.commands.{words[0]}").main([w for w in words[1:] if w != "--help"])
        return caught.value.args[0]

    return run


def test_there_are_commands_to_check() -> None:
    assert {words.values[0][0] for words in ALL} == set(COMMANDS)  # type: ignore[index]


@pytest.mark.parametrize("words", ALL)
def test_a_command_that_is_shown_can_be_given(words: list[str], parsed: Any) -> None:
    options = parsed(words)
    if words[0] == "train":
        check_settings(options.settings, {word[2:].replace("-", "_") for word in words if word.startswith("--")})
    elif words[0] == "recipes" and options.name is not None:
        recipes.get(options.name)
    elif words[0] == "models" and options.name is not None:
        registry.find(options.name)
    elif words[0] == "datasets" and options.name is not None:
        find_entry(options.name)
    elif words[0] == "roadmap" and options.train is not None:
        recipes.get(options.train)
    elif words[0] == "predict" and ":" in options.run and not options.run.startswith("hf:"):
        find_weights(*options.run.split(":"))


def check_settings(settings: RunSettings, given: set[str]) -> None:
    if not settings.data.name.startswith(tuple(FAMILIES)):
        find_entry(settings.data.name)
    if recipes.get(settings.recipe).choose is None:  # else it wants to see the images
        settings, _ = recipes.complete(settings, given)
        registry.resolve(settings.model)
    registry.check_given(settings.model, given)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_options_in_sentences_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"convnext.commands.{name}")
        for words in ([], ["check"]) if name == "datasets" else (["digits"],) if name == "train" else ([],):
            with pytest.raises(SystemExit):
                module.main([*words, "--help"])
    known = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out)) | {"--help", "--debug", "--version"} | OTHERS
    spans = re.findall(r"`([^`\n]+)`", FENCED.sub("", path.read_text(encoding="utf-8")))
    assert {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span)} <= known


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_relative_links_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text(encoding="utf-8"))):
        if not link.startswith(("http://", "https://")):
            target, _, anchor = link.partition("#")
            where = (path.parent / target).resolve() if target else path
            assert where.exists(), link
            if anchor:
                headings = re.findall(r"^#+ (.+)$", where.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in map(slug, headings), link


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_recipes_in_the_readme_exist_with_what_was_published() -> None:
    section = README.partition("## Which recipe")[2].partition("\n## ")[0]
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
    (program,) = [block for language, block in FENCED.findall(README) if language == "python"]
    assert "epochs=5" in program
    Image.fromarray((load_digits().images[7] * 255 / 16).astype(np.uint8)).save(tmp_path / "seven.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program.replace("epochs=5", "epochs=1"), "README.md", "exec"), names)
    assert (tmp_path / "runs" / "digits" / "test_report.json").is_file()
    assert names["run"].settings.epochs == 1
    assert len(names["predictions"]) == 3
    assert names["model"].head.out_features == 10


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_programs_use_what_there_is(path: Path) -> None:
    for language, block in FENCED.findall(path.read_text(encoding="utf-8")):
        if language == "python":
            compile(block, str(path), "exec")
            assert set(re.findall(r"\bconvnext\.(\w+)\(", block)) <= set(convnext.__all__)


def test_what_contributors_are_shown_works(tmp_path: Path) -> None:
    package = shutil.copytree(Path(convnext.__file__).parent, tmp_path / "convnext")
    blocks = [block for _, block in FENCED.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))]
    files = {match[1]: block for block in blocks if (match := re.match(r"# (convnext/\S+\.py)\n", block))}
    assert len(files) == 4
    for path, block in files.items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(block)
    (line,) = (block for block in blocks if block.startswith('    "classes"'))
    before = '    "convert":'
    text = (package / "cli.py").read_text()
    (package / "cli.py").write_text(text.replace(before, line + before))
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
