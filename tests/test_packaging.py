"""What is installed needs no repository: a wheel in an environment of its own, the sdist, a container's files."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Standard output of a command, with nothing from the tests' environment that would lead to the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=source)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def files_of(wheel: Path) -> list[str]:
    return sorted(zipfile.ZipFile(wheel).namelist())


def test_the_digits_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    zipfile.ZipFile(wheel).extractall(packages)
    # What it depends on is in the tests' environment; a .pth in a folder that a .pth names, such as that of an editable
    # installation, is not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python, cache = environment / "bin" / "python", str(tmp_path / "cache")

    def convnext(*words: str) -> str:
        return run(python, "-m", "convnext", *words, cwd=tmp_path, CONVNEXT_CACHE=cache)

    where = run(python, "-c", "import convnext; print(convnext.__file__)", cwd=tmp_path)
    assert where == f"{packages / 'convnext' / '__init__.py'}\n"
    convnext("train", "digits", "--epochs", "1", "--output", "runs")
    assert json.loads(convnext("evaluate", "runs/digits", "--json"))["count"] == 360
    convnext("datasets", "digits", "--to-folder", "images")
    image = str(next((tmp_path / "images" / "test" / "7").iterdir()))
    assert len(json.loads(convnext("predict", "runs/digits", image, "--json"))[0]["predictions"]) == 5
    assert list((tmp_path / "cache" / "kernels").glob("*.so"))  # compiled from the sources that the wheel has
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
