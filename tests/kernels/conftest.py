"""The compiled library, or an empty cache folder for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext import kernels
from convnext.kernels import build


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and a library that is looked for again."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    build.forget()
    yield tmp_path
    build.forget()


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> None:
    if "fresh" in request.fixturenames:
        request.getfixturevalue("fresh")
    if build.library() is None:
        pytest.skip(kernels.describe())
