"""The compiled library, or an empty cache folder for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

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


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets PyTorch's number of threads, which is afterwards what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
