import shutil
from pathlib import Path

import pytest

import convnext
from convnext.comparison.measured import Measured, measure


@pytest.fixture(scope="session")
def better(digits_run: convnext.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the session's run."""
    return shutil.copytree(digits_run.path, tmp_path_factory.mktemp("compared") / "better", symlinks=True)


@pytest.fixture(scope="session")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    output = tmp_path_factory.mktemp("compared")
    return convnext.train(convnext.recipe("digits", epochs=1, output=output, **{"model.dims": (16, 32, 64)})).path


@pytest.fixture(scope="session")
def measured(better: Path) -> Measured:
    return measure(better)
