"""The texts hold: their links, commands and options exist, their code runs, and the site is built from them."""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import convnext
from convnext import cli, recipes
from convnext.cli import COMMANDS
from convnext.commands.terminal import parse
from convnext.comparison.definition import Definition, contenders, parse_vary
from convnext.config import RunSettings
from convnext.data.datasets.catalogue import FAMILIES, find_entry
from convnext.models import registry
from convnext.weights.catalogue import find as find_weights
from tests.support.photographs import patches
from tests.support.texts import PAGES, ROOT, TEXTS, blocks, commands, name_of, sentences

# Options in the texts that are of other programs.
OTHERS = {"--cpu", "--multi_gpu", "--nproc-per-node", "--num_processes", "--nnodes", "--requeue", "--signal", "--batch"}
OTHERS |= {"--max-restarts", "--local-addr", "--rdzv-conf", "--check", "--strict"}
ALL = [
    pytest.param(words, id=f"{path.stem}: {' '.join(words)}")
    for path in TEXTS
    for block in blocks(path)
    for words in commands(block.text)
]


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


def test_every_command_is_shown() -> None:
    assert {words.values[0][0] for words in ALL} == set(COMMANDS)  # type: ignore[index]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_block_names_its_language(path: Path) -> None:
    assert [block.text for block in blocks(path) if not block.language] == []


@pytest.mark.parametrize("words", ALL)
def test_a_command_that_is_shown_can_be_given(words: list[str], parsed: Any) -> None:
    options = parsed(words)
    if words[0] == "train":
        check_settings(options.settings, {word[2:].replace("-", "_") for word in words if word.startswith("--")})
    elif words[0] == "compare" and options.recipe is not None and recipes.get(options.recipe).choose is None:
        contenders(Definition(recipe=options.recipe, models=options.models, vary=parse_vary(options.vary)))
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


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The options of all commands, and those in the texts that are of other programs."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for name in COMMANDS:
            module = importlib.import_module(f"convnext.commands.{name}")
            for words in ([], ["check"]) if name == "datasets" else (["digits"],) if name == "train" else ([],):
                with pytest.raises(SystemExit):
                    module.main([*words, "--help"])
    return set(re.findall(r"--[a-z][\w.-]*", output.getvalue())) | {"--help", "--debug", "--version"} | OTHERS


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_options_in_sentences_exist(path: Path, options: set[str]) -> None:
    spans = re.findall(r"`([^`\n]+)`", sentences(path))
    assert {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span)} <= options


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_relative_links_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", sentences(path)):
        if not link.startswith(("http://", "https://")):
            target, _, anchor = link.partition("#")
            where = (path.parent / target).resolve() if target else path
            assert where.exists(), link
            if anchor:
                headings = re.findall(r"^#+ (.+)$", where.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in map(slug, headings), link


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, digits_run: convnext.Run, digits_images: Path) -> Path:
    """A folder with what the pages name: runs of the recipes digits and folder, the digits, photographs."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "runs").mkdir()
    (root / "runs" / "digits").symlink_to(digits_run.path)
    (root / "images").symlink_to(digits_images)
    for index, image in enumerate(patches()):
        path = root / "my_images" / ("cat", "dog", "pizza")[index % 3] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    photographs = sorted((root / "my_images").rglob("*.jpg"))
    for name in ("cat.jpg", "photos/one.jpg", "photos/two.jpg", "more/old/three.png", "new/pizza.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).hardlink_to(photographs.pop())
    (root / "labelled").symlink_to("my_images")
    model = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128), "patch_size": 4, "weights": None}
    data = {"root": root / "my_images", "image_size": 64, "workers": 0}
    convnext.train(convnext.recipe("folder", output=root / "runs", epochs=1, model=model, data=data))
    return root


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_a_page_shows_runs(path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    names: dict[str, Any] = {}
    for language, text, not_run in blocks(path):
        if language == "python" and not not_run:
            exec(compile(text, name_of(path), "exec"), names)
        elif language == "bash" and not not_run:
            for words in commands(text):
                assert cli.main(words) == 0, words


def test_the_site_is_built_without_a_warning_and_needs_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = re.compile(r"<(?:script|img|iframe|link rel=.?stylesheet)[^>]* (?:src|href)=.?(?:https?:)?//")
    assert [page for page in tmp_path.rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))] == []
    settings = (tmp_path / "reference" / "settings.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in settings for name in RunSettings.names() - {"recipe"})
    python = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert all(f'id="convnext.{name}"' in python for name in convnext.__all__)
