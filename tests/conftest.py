"""Real, small data: scikit-learn's digits, as an array and as folders of PNG files."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same arithmetic on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from threads, which wait for each other

import torch
from torch.utils.benchmark import Timer

import convnext
from convnext.config import DataSettings
from convnext.data.datasets.load import export_folder, load_splits

# A shell that starts the tests in the background may have these ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and there is none to be seen")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def one_forkserver() -> None:
    """Start what `tests.support.killing` forks from, where a test uses it: the first who starts it chooses what it has
    imported and its environment, and it imports tests from the working directory that it is started in."""
    if "tests.support.killing" in sys.modules:
        commands = [f"convnext.commands.{name}" for name in ("train", "evaluate", "compare")]
        others = ["convnext.training.train", "convnext.inference.benchmark.measuring"]
        late = ["sklearn.datasets", "sklearn.metrics", "sklearn.model_selection"]  # which training imports late
        forkserver.set_forkserver_preload(["tests.support.killing", *commands, *others, *late])
        forkserver.ensure_running()  # which does not wait for the imports


@pytest.fixture(scope="session", autouse=True)
def short_measurements() -> Iterator[None]:
    """The speed that a report states is measured in a moment: no test is of how large it is."""
    usual = Timer.blocked_autorange
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Timer, "blocked_autorange", lambda timer, **_: usual(timer, min_run_time=0.02))
        yield


@pytest.fixture(scope="session")
def digits_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as train/<class>/*.png and test/<class>/*.png."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    export_folder(load_splits(DataSettings(name="digits", image_size=8)), folder)
    return folder


@pytest.fixture
def small_folder(digits_images: Path, tmp_path: Path) -> Path:
    """Three classes with 20 training and 5 test images each, in a folder of the test's own."""
    root = tmp_path / "images"
    for part, count in (("train", 20), ("test", 5)):
        for name in ("0", "1", "2"):
            (root / part / name).mkdir(parents=True)
            for path in sorted((digits_images / part / name).iterdir())[:count]:
                shutil.copy(path, root / part / name)
    return root


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    """A run of the digits recipe, shortened to 4 epochs."""
    return convnext.train(convnext.recipe("digits", epochs=4, output=tmp_path_factory.mktemp("runs")))


@pytest.fixture
def colour_image() -> Image.Image:
    """A smooth 40x30 picture whose four quarters differ."""
    y, x = np.mgrid[0:30, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8))


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in full float32 (TF32 is cuDNN's default), by algorithms that give the same sums each time."""
    assert not torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
