"""What is installed needs no repository: a wheel in an environment of its own, the sdist, a container's files."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from convnext.kernels.build import forget, library
from convnext.storage.downloads import cache_folder

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command, which succeeds, with nothing from the tests' environment that would lead to the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def build(kind: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=source)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def files_of(wheel: Path) -> list[str]:
    return sorted(zipfile.ZipFile(wheel).namelist())


def compiled_here(cache: Path) -> set[str]:
    """The kernels' compiled libraries, copied into another cache folder; none where nothing compiles them."""
    forget()  # one in a folder of another test
    if library() is None:
        return set()
    unfinished = shutil.ignore_patterns(".*")  # by another process
    shutil.copytree(cache_folder() / "kernels", cache / "kernels", ignore=unfinished)
    return {path.name for path in cache.glob("kernels/*.so")}


COMMANDS = """
import sys
from pathlib import Path
from convnext.cli import main
sys.exit(
    main(["evaluate", "runs/digits", "--json"])
    or main(["datasets", "digits", "--to-folder", "images"])
    or main(["predict", "runs/digits", str(next(Path("images/test/7").iterdir())), "--json"])
)
"""


def test_the_digits_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    zipfile.ZipFile(wheel).extractall(packages)
    # What it depends on is in the tests' environment; a .pth in a folder that a .pth names, such as that of an editable
    # installation, is not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python, cache = environment / "bin" / "python", tmp_path / "cache"
    compiled = compiled_here(cache)

    where = run(python, "-c", "import convnext; print(convnext.__file__)", cwd=tmp_path)
    assert where.stdout == f"{packages / 'convnext' / '__init__.py'}\n"
    words = ["-m", "convnext", "train", "digits", "--epochs", "1", "--output", "runs"]
    trained = run(python, *words, cwd=tmp_path, CONVNEXT_CACHE=str(cache))
    # A library is named by the sources that it was compiled from: the wheel has these.
    assert {path.name for path in cache.glob("kernels/*.so")} == compiled
    assert ("by compiled " in trained.stderr) == bool(compiled)
    used = run(python, "-c", COMMANDS, cwd=tmp_path, CONVNEXT_CACHE=str(cache))
    report, predicted = (json.loads(line) for line in used.stdout.splitlines() if line[0] in "[{")
    assert report["count"] == 360
    assert len(predicted[0]["predictions"]) == 5
    script = zipfile.ZipFile(wheel).read(next(name for name in files_of(wheel) if name.endswith("entry_points.txt")))
    assert b"convnext = convnext.cli:main" in script
    assert "convnext/inference/server/page/index.html" in files_of(wheel)


def test_the_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(path for path in tmp_path.iterdir() if path.name != "sdist")
    assert files_of(build("wheel", source, tmp_path / "wheel")) == files_of(wheel)
    assert (source / "LICENSE").is_file()


def test_the_dockerfile_copies_what_a_wheel_is_made_of() -> None:
    lines = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed == {"pyproject.toml", "README.md", "LICENSE", "convnext"}
    assert all((ROOT / name).exists() for name in copied)
