from pathlib import Path

import pytest

from tests.support.architecture import ARROWS, private_uses, read_modules, too_long, wrong_arrows

ROOT = Path(__file__).parents[1]
MODULES = read_modules(ROOT / "convnext")
USERS = read_modules(ROOT / "tests") | read_modules(ROOT / "benchmarks") | read_modules(ROOT / "examples")


def test_imports_run_down_the_stated_arrows_without_circles() -> None:
    assert wrong_arrows(MODULES) == []


def test_no_private_name_crosses_rooms() -> None:
    assert private_uses(MODULES, MODULES) == []


def test_tests_benchmarks_and_examples_use_public_names_alone() -> None:
    assert private_uses(USERS, MODULES) == []


def test_no_file_past_400_lines_and_no_function_past_60() -> None:
    assert too_long(MODULES | USERS, 400, 60) == []


def test_the_arrows_are_those_that_contributors_are_told() -> None:
    assert ARROWS in " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("from convnext.training import trainer", "convnext.data.images imports convnext.training.trainer: up"),
        ("from convnext.models import registry", "convnext.data.images imports convnext.models.registry: up"),
        ("def f():\n    import convnext.cli", "convnext.data.images imports convnext.cli: up"),
        ("from convnext.data import sources", "a circle: convnext.data"),
        ("from convnext import somewhere", "convnext.data.images imports convnext.somewhere: not a room"),
    ],
)
def test_a_wrong_import_is_noticed(source: str, complaint: str, tmp_path: Path) -> None:
    package = _package(tmp_path, {"data/images": source, "data/sources": "import convnext.data.images"})
    assert any(line.startswith(complaint) for line in wrong_arrows(read_modules(package)))


@pytest.mark.parametrize(
    "source",
    ["from convnext.data.images import _decode", "images._decode(1)", "monkeypatch.setattr(images, '_decode', None)"],
)
def test_a_private_name_of_another_room_is_noticed(source: str, tmp_path: Path) -> None:
    modules = read_modules(_package(tmp_path, {"data/images": "def _decode(): ...", "training/trainer": source}))
    assert len(private_uses(modules, modules)) == 1


def _package(folder: Path, sources: dict[str, str]) -> Path:
    package = folder / "convnext"
    names = {"training/trainer": "", "models/registry": "", "cli": "", "somewhere": ""} | sources
    for name, source in names.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        (path.parent / "__init__.py").touch()
    return package
