"""Images are decoded once, and are those of the files."""

import json
import multiprocessing
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnext.config import AugmentSettings, DataSettings, RunSettings
from convnext.data.cache.source import CachedSource, CacheError, open_cache
from convnext.data.files import scan_folder
from convnext.data.images import UnreadableImageError
from convnext.data.loading.loader import AugmentedImages, EvalSampler, TrainSampler, batches
from convnext.data.sources import FileSource, ImageSource
from convnext.data.splits import Splits
from convnext.data.transforms import EvalTransform, TrainTransform
from convnext.training.resolve import cached
from convnext.weights.model_info import read_json
from tests.support.caching import FORK, SIZE, forked, make_images, opened, same_pixels


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    return make_images(tmp_path / "images")


@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_those_of_the_files(source: FileSource, channels: int) -> None:
    source = replace(source, channels=channels)
    cached = opened(source, workers=2)
    assert same_pixels(cached, source)
    sizes = [(cached.picture(index).size, source.picture(index).size) for index in range(len(source))]
    unchanged = [index for index, (size, original) in enumerate(sizes) if size == original]
    assert 0 < len(unchanged) < len(source)
    assert all(min(size) == SIZE for size, original in sizes if size != original)
    assert all(cached.load(index).tobytes() == source.load(index).tobytes() for index in unchanged)
    assert [cached.image_name(index) for index in range(40)] == [source.image_name(index) for index in range(40)]
    assert cached.fingerprint() == source.fingerprint()
    assert np.array_equal(cached.targets, source.targets)


def test_a_subset_is_that_of_the_source(source: FileSource) -> None:
    indices = np.array([31, 2, 17])
    subset, original = opened(source).subset(indices), source.subset(indices)
    assert same_pixels(subset, original)
    assert subset.fingerprint() == original.fingerprint()
    assert subset.targets.tolist() == original.targets.tolist()
    assert subset.image_name(0) == original.image_name(0)


def test_training_batches_of_small_images_are_the_same_with_and_without(source: FileSource) -> None:
    small = source.subset(np.flatnonzero(np.arange(40) % 4))
    transform = TrainTransform(AugmentSettings(), 16, (0.5,) * 3)

    def drawn(images: ImageSource, workers: int) -> torch.Tensor:
        sampler = TrainSampler(len(images), 10, epochs=2, seed=1)
        with batches(AugmentedImages(images, [transform] * 2, seed=1), sampler, workers) as stream:
            return torch.cat([batch.images for batch in stream])

    cached = opened(small)
    assert torch.equal(drawn(cached, workers=0), drawn(small, workers=0))
    assert torch.equal(drawn(cached, workers=2), drawn(small, workers=0))


def test_a_file_is_made_once(source: FileSource, capfd: pytest.CaptureFixture[str]) -> None:
    first = opened(source)
    line = capfd.readouterr().err
    assert line.startswith("cached 40 images, with a shorter side of at most 48 px: ")
    assert line.endswith(f" in {first.path}\n")
    second = opened(source)
    assert capfd.readouterr().err == ""
    assert second.path.samefile(first.path)
    assert open_cache(source, SIZE - 1, progress=False).path != first.path
    assert capfd.readouterr().err == ""


def test_unreadable_images_are_remembered(source: FileSource, capfd: pytest.CaptureFixture[str]) -> None:
    source.path(3).write_text("this is no image")
    data = source.path(8).read_bytes()
    source.path(8).write_bytes(data[: len(data) // 2])
    source.path(12).unlink()

    def message(images: ImageSource, index: int) -> str:
        with pytest.raises(UnreadableImageError) as error:
            images.load(index)
        return str(error.value)

    cached = opened(source, workers=2)
    assert "cached 40 images, 3 of them unreadable, " in capfd.readouterr().err
    for index in (3, 8, 12):
        assert message(cached, index) == message(source, index)
    assert message(cached.subset(np.array([5, 3])), 1) == message(source, 3)
    good = np.setdiff1d(np.arange(40), [3, 8, 12])
    assert same_pixels(cached.subset(good), source.subset(good))


def test_what_is_done_to_the_pixels_stays_in_the_process(source: FileSource) -> None:
    pixels = opened(source).raw(5)
    assert not pixels.flags.owndata  # a view, which nobody has to copy
    pixels[:] = 0
    assert same_pixels(opened(source), source)


def test_a_file_larger_than_memory(source: FileSource) -> None:
    path = opened(source).path
    data = path.read_bytes()
    header = json.loads(data[data.index(b"{") : 4096])
    page = os.sysconf("SC_PAGE_SIZE")
    far = 4 * os.sysconf("SC_PHYS_PAGES") * page
    with path.open("r+b") as file:  # a hole behind the pixels, which takes no room
        file.seek(far)
        file.write(data[header["tail"] :])
        header.update(tail=far, size=file.tell())
        file.seek(data.index(b"{"))
        file.write(json.dumps(header).encode())
    cached = opened(source)
    assert cached.path.stat().st_size > far
    assert same_pixels(cached, source)
    assert cached.load(1).tobytes() == source.load(1).tobytes()


def test_runs_that_start_at_once_make_one_file(source: FileSource, capfd: pytest.CaptureFixture[str]) -> None:
    barrier = FORK.Barrier(3)

    def run() -> None:
        barrier.wait()
        cached = opened(source, workers=1)
        barrier.wait()
        sys.exit(not same_pixels(cached, source))

    runs = [forked(run) for _ in range(3)]
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0, 0, 0]
    assert capfd.readouterr().err.count("cached 40 images") == 1


@pytest.mark.parametrize("change", ["size", "time"])
def test_changed_files_are_read_again(source: FileSource, change: str) -> None:
    path = source.path(7)
    Image.open(path).save(path, "BMP")  # whose size is that of its pixels
    status = path.stat()
    before = opened(source)
    old = before.raw(7).copy()
    image = Image.open(path).transpose(Image.Transpose.ROTATE_180)
    (image.crop((0, 0, 20, 10)) if change == "size" else image).save(path, "BMP")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (change == "time")))
    assert (path.stat().st_size == status.st_size) == (change == "time")
    after = opened(source)
    assert same_pixels(after, source)
    assert not np.array_equal(after.raw(7), old)
    assert np.array_equal(before.raw(7), old)  # who began with them goes on with them
    assert after.path == before.path  # it replaces the old file
    path.unlink()
    with pytest.raises(UnreadableImageError):
        opened(source).raw(7)


def read_elsewhere(cached: CachedSource) -> list[bytes]:
    return [cached.raw(index).tobytes() for index in range(len(cached))]


def test_a_started_process_opens_the_file_anew(source: FileSource) -> None:
    big = source.subset(np.flatnonzero(np.arange(40) % 4 == 0))
    cached = opened(big)
    pixels = read_elsewhere(cached)
    assert len(pickle.dumps(cached)) < sum(map(len, pixels)) / 10
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_elsewhere, (cached.subset(np.arange(5)),)) == pixels[:5]
    assert read_elsewhere(pickle.loads(pickle.dumps(cached))) == pixels
    pickled = pickle.dumps(cached)
    cached.path.unlink()
    with pytest.raises(CacheError, match="is gone or was replaced while it was in use"):
        pickle.loads(pickled)


def own_memory() -> int:
    """Bytes of this process that are no file's: a map's pages are among them only where it copied them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell a process's own memory"
)
def test_memory_does_not_grow_with_epochs_and_workers(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    for number in range(48):
        path = tmp_path / "large" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(noise, number)).save(path)
    cached = open_cache(scan_folder(tmp_path / "large", ["a", "b"]), image_size=600)
    size = cached.path.stat().st_size
    assert size > 50_000_000
    results = FORK.SimpleQueue()

    def work(number: int) -> None:
        images = AugmentedImages(cached, [EvalTransform(32)], seed=0)
        images[0, 0, 0]
        before = own_memory()
        for _ in range(3):
            with batches(images, EvalSampler(len(cached), 8, number, 1), workers=0) as stream:
                assert sum(len(batch.images) for batch in stream) == 48 - number
        results.put(own_memory() - before)

    before = own_memory()
    workers = [forked(work, number) for number in range(3)]
    growth = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert all(grown < size / 5 for grown in growth), growth
    assert own_memory() - before < size / 5


def test_the_test_images_are_those_of_the_files(source: FileSource) -> None:
    images = Splits(("a", "b"), source, source, source)  # val and test are one
    splits = cached(images, DataSettings(cache="disk", cache_image_size=SIZE), progress=False)
    assert isinstance(splits.train, CachedSource)
    assert isinstance(splits.val, CachedSource)
    assert splits.test is source


def test_settings_that_change_the_pixels_have_files_of_their_own(source: FileSource) -> None:
    plain = opened(source)
    for change in ({"max_value": 4095.0}, {"max_pixels": 100}):
        assert opened(source.configured(DataSettings(**change))).path != plain.path
    with pytest.raises(UnreadableImageError, match=r"--data\.max-pixels allows"):
        opened(source.configured(DataSettings(max_pixels=100))).load(0)


def test_a_run_that_cached_in_memory_can_still_be_read(tmp_path: Path) -> None:
    """Up to format 3 there was a cache "ram"."""
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"data": {"cache": "ram", "cache_side": 100}}))
    settings: RunSettings = read_json(path, RunSettings)
    assert (settings.data.cache, settings.data.cache_image_size) == ("disk", 100)
