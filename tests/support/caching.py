"""A few files of images, and caches of them."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.cache.source import CachedSource, open_cache
from convnext.data.files import scan_folder
from convnext.data.sources import FileSource, ImageSource

SIZE = 48
Pixels = NDArray[np.uint8]
FORK = multiprocessing.get_context("fork")


def make_images(folder: Path) -> FileSource:
    """40 images of two classes: PNG below `SIZE`, and JPEG of which every second one is larger."""
    random = np.random.default_rng(0)
    for number in range(40):
        height, width = random.integers(20, SIZE, 2) * (1 if number % 4 else 5)
        pixels = np.kron(random.integers(0, 256, (5, 5, 3)), np.ones((height // 5 + 1, width // 5 + 1, 1)))
        path = folder / "ab"[number // 20] / f"{number:02}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:height, :width].astype(np.uint8)).save(path)
    return scan_folder(folder, ["a", "b"])


def opened(source: ImageSource, workers: int = 0) -> CachedSource:
    return open_cache(source, SIZE, workers)


def expected(source: ImageSource, index: int) -> Pixels:
    """What `Picture` gives, with a shorter side of at most `SIZE`."""
    picture = source.picture(index)
    width, height = picture.size
    scale = min(1.0, SIZE / min(width, height))
    resized = picture.resized((0, 0, width, height), round(width * scale), round(height * scale))
    return resized[..., 0] if source.channels == 1 else resized


def same_pixels(cached: ImageSource, source: ImageSource) -> bool:
    return all(np.array_equal(cached.raw(index), expected(source, index)) for index in range(len(source)))


def forked(function: Callable[..., object], *arguments: object) -> BaseProcess:
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def unfinished(path: Path) -> list[Path]:
    """What processes that were killed left of a cache."""
    return list(path.parent.glob(f".{path.name}.*.tmp"))
