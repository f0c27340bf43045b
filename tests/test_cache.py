"""Decoded images are kept once, whatever happens to the processes that make and use the file."""

import fcntl
import io
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import get_worker_info

from convnext.config import AugmentSettings
from convnext.data.cache import CachedSource, CacheError, open_cache
from convnext.data.images import UnreadableImageError
from convnext.data.loading import AugmentedImages, EvalSampler, TrainSampler, batches
from convnext.data.sources import FileSource, ImageSource, scan_folder
from convnext.data.transforms import EvalTransform, TrainTransform

Where = Literal["ram", "disk"]
SIDE = 48
Pixels = NDArray[np.uint8]
FORK = multiprocessing.get_context("fork")
both = pytest.mark.parametrize("where", ["ram", "disk"])


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    """40 images of two classes: PNG below `SIDE`, and JPEG of which every second one is larger."""
    random = np.random.default_rng(0)
    for number in range(40):
        height, width = random.integers(20, SIDE, 2) * (1 if number % 4 else 5)
        pixels = np.kron(random.integers(0, 256, (5, 5, 3)), np.ones((height // 5 + 1, width // 5 + 1, 1)))
        path = tmp_path / "images" / "ab"[number // 20] / f"{number:02}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:height, :width].astype(np.uint8)).save(path)
    return scan_folder(tmp_path / "images", ["a", "b"])


def opened(source: ImageSource, where: Where, workers: int = 0) -> CachedSource:
    return open_cache(source, where, SIDE, workers)


def expected(source: ImageSource, index: int) -> Pixels:
    """What `Picture` gives, with a shorter side of at most `SIDE`."""
    picture = source.picture(index)
    width, height = picture.size
    scale = min(1.0, SIDE / min(width, height))
    resized = picture.resized((0, 0, width, height), round(width * scale), round(height * scale))
    pixels: Pixels = (resized[0] if source.channels == 1 else resized.permute(1, 2, 0)).numpy()
    return pixels


def same_pixels(cached: ImageSource, source: ImageSource) -> bool:
    return all(np.array_equal(cached.raw(index), expected(source, index)) for index in range(len(source)))


def forked(function: Callable[..., object], *arguments: object) -> BaseProcess:
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@both
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_those_of_the_files(source: FileSource, where: Where, channels: int) -> None:
    source = replace(source, channels=channels)
    cached = opened(source, where, workers=2)
    assert same_pixels(cached, source)
    sizes = [(cached.picture(index).size, source.picture(index).size) for index in range(len(source))]
    kept = [index for index, (size, original) in enumerate(sizes) if size == original]
    assert 0 < len(kept) < len(source)
    assert all(min(size) == SIDE for size, original in sizes if size != original)
    assert all(cached.load(index).tobytes() == source.load(index).tobytes() for index in kept)
    assert [cached.label(index) for index in range(40)] == [source.label(index) for index in range(40)]
    assert cached.fingerprint() == source.fingerprint()
    assert np.array_equal(cached.targets, source.targets)


def test_a_subset_is_that_of_the_source(source: FileSource) -> None:
    places = np.array([31, 2, 17])
    subset, original = opened(source, "disk").subset(places), source.subset(places)
    assert same_pixels(subset, original)
    assert subset.fingerprint() == original.fingerprint()
    assert subset.targets.tolist() == original.targets.tolist()
    assert subset.label(0) == original.label(0)


def test_training_batches_of_small_images_are_the_same_with_and_without(source: FileSource) -> None:
    small = source.subset(np.flatnonzero(np.arange(40) % 4))
    transform = TrainTransform(AugmentSettings(), 16, (0.5,) * 3)

    def drawn(images: ImageSource, workers: int) -> torch.Tensor:
        sampler = TrainSampler(len(images), 10, epochs=2, seed=1)
        with batches(AugmentedImages(images, [transform] * 2, seed=1), sampler, workers) as stream:
            return torch.cat([batch.images for batch in stream])

    cached = opened(small, "ram")
    assert torch.equal(drawn(cached, workers=0), drawn(small, workers=0))
    assert torch.equal(drawn(cached, workers=2), drawn(small, workers=0))


@both
def test_a_file_is_made_once(source: FileSource, where: Where, capfd: pytest.CaptureFixture[str]) -> None:
    first = opened(source, where)
    said = capfd.readouterr().err
    assert said.startswith("cached 40 images, with a shorter side of at most 48 px: ")
    assert said.endswith(f" in {first.path}\n")
    second = opened(source, where)
    assert capfd.readouterr().err == ""
    assert second.path.samefile(first.path)
    assert open_cache(source, where, SIDE - 1, progress=False).path != first.path
    assert capfd.readouterr().err == ""


@both
def test_unreadable_images_are_remembered(source: FileSource, where: Where, capfd: pytest.CaptureFixture[str]) -> None:
    source.path(3).write_text("this is no image")
    data = source.path(8).read_bytes()
    source.path(8).write_bytes(data[: len(data) // 2])
    source.path(12).unlink()

    def message(images: ImageSource, index: int) -> str:
        with pytest.raises(UnreadableImageError) as error:
            images.load(index)
        return str(error.value)

    cached = opened(source, where, workers=2)
    assert "cached 40 images, 3 of them unreadable, " in capfd.readouterr().err
    for index in (3, 8, 12):
        assert message(cached, index) == message(source, index)
    assert message(cached.subset(np.array([5, 3])), 1) == message(source, 3)
    good = np.setdiff1d(np.arange(40), [3, 8, 12])
    assert same_pixels(cached.subset(good), source.subset(good))


def test_what_is_done_to_the_pixels_stays_in_the_process(source: FileSource) -> None:
    pixels = opened(source, "disk").raw(5)
    assert not pixels.flags.owndata  # a view, which nobody has to copy
    pixels[:] = 0
    assert same_pixels(opened(source, "disk"), source)


def test_a_file_larger_than_memory(source: FileSource) -> None:
    path = opened(source, "disk").path
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
    cached = opened(source, "disk")
    assert cached.path.stat().st_size > far
    assert same_pixels(cached, source)
    assert cached.load(1).tobytes() == source.load(1).tobytes()


class KillingSource(FileSource):
    """Kills the process that makes the cache from one of its workers, as running out of memory would."""

    def raw(self, index: int) -> bytes:
        if index == 30 and get_worker_info() is not None:
            os.kill(os.getppid(), signal.SIGKILL)
        return self.path(index).read_bytes()


@both
def test_a_kill_while_the_file_is_written(source: FileSource, where: Where) -> None:
    path = opened(source, where).path
    path.unlink(missing_ok=True)
    killed = forked(opened, KillingSource(**vars(source)), where, 2)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert part_of(path).exists()
    assert not path.exists()
    other = opened(source.subset(np.arange(10)), where)  # clears away what nobody goes on with
    assert not part_of(path).exists()
    part_of(path).write_bytes(b"longer than what will be written" * 100_000)
    cached = opened(source, where)
    assert same_pixels(cached, source)
    assert not part_of(path).exists()
    assert same_pixels(other, source.subset(np.arange(10)))


@both
def test_runs_that_start_at_once_make_one_file(
    source: FileSource, where: Where, capfd: pytest.CaptureFixture[str]
) -> None:
    barrier = FORK.Barrier(3)

    def run() -> None:
        barrier.wait()
        cached = opened(source, where, workers=1)
        barrier.wait()
        sys.exit(not same_pixels(cached, source))

    runs = [forked(run) for _ in range(3)]
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0, 0, 0]
    assert capfd.readouterr().err.count("cached 40 images") == 1


def test_a_run_waits_for_another_and_takes_over_where_that_dies(source: FileSource) -> None:
    path = opened(source, "disk").path
    path.unlink()
    receiving, sending = os.pipe()

    def run() -> None:
        sys.stderr = os.fdopen(sending, "w")
        sys.exit(not same_pixels(opened(source, "disk"), source))

    with part_of(path).open("w") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        waiting = forked(run)
        os.close(sending)
        with os.fdopen(receiving) as said:
            assert said.readline() == "waiting for another process, which caches the same images\n"
            assert not path.exists()
            fcntl.flock(part, fcntl.LOCK_UN)
            assert said.readline().startswith("cached 40 images")
    waiting.join()
    assert waiting.exitcode == 0
    assert path.exists()


@both
@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "text", "header", "index"])
def test_a_damaged_file_is_made_anew(source: FileSource, where: Where, damage: str) -> None:
    user = opened(source, where)
    data = bytearray(user.path.read_bytes())
    if damage == "header":
        data[20:40] = b"x" * 20
    elif damage == "index":
        data[-40] ^= 1
    others = {"truncated": data[:-1], "longer": data + b"x", "empty": bytearray(), "text": bytearray(b"no images")}
    changed = others.get(damage, data)
    user.path.unlink()  # another file: the one that is mapped stays
    user.path.write_bytes(changed)
    cached = opened(source, where)
    assert same_pixels(cached, source)
    assert cached.path.read_bytes() != changed
    assert same_pixels(user, source)


@both
@pytest.mark.parametrize("change", ["size", "time"])
def test_changed_files_are_read_again(source: FileSource, where: Where, change: str) -> None:
    path = source.path(7)
    Image.open(path).save(path, "BMP")  # whose size is that of its pixels
    status = path.stat()
    before = opened(source, where)
    old = before.raw(7).copy()
    image = Image.open(path).transpose(Image.Transpose.ROTATE_180)
    (image.crop((0, 0, 20, 10)) if change == "size" else image).save(path, "BMP")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (change == "time")))
    assert (path.stat().st_size == status.st_size) == (change == "time")
    after = opened(source, where)
    assert same_pixels(after, source)
    assert not np.array_equal(after.raw(7), old)
    assert np.array_equal(before.raw(7), old)  # who began with them goes on with them
    assert after.path == before.path  # in place of the old file
    path.unlink()
    with pytest.raises(UnreadableImageError):
        opened(source, where).raw(7)


def read_elsewhere(cached: CachedSource) -> list[bytes]:
    return [cached.raw(index).tobytes() for index in range(len(cached))]


@both
def test_a_started_process_opens_the_file_anew(source: FileSource, where: Where) -> None:
    big = source.subset(np.flatnonzero(np.arange(40) % 4 == 0))
    cached = opened(big, where)
    pixels = read_elsewhere(cached)
    assert len(pickle.dumps(cached)) < sum(map(len, pixels)) / 10
    if where == "ram":  # either start method unpickles it; one start of an interpreter is enough
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(read_elsewhere, (cached.subset(np.arange(5)),)) == pixels[:5]
    copy = pickle.loads(pickle.dumps(cached))
    assert read_elsewhere(copy) == pixels
    copy.close()
    assert cached.path.exists()
    pickled = pickle.dumps(cached)
    cached.path.unlink()
    with pytest.raises(CacheError, match="is gone or was replaced while it was in use"):
        pickle.loads(pickled)


def own_memory() -> int:
    """Bytes of this process that are no file's: a map's pages are among them only where it copied them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


@both
@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell a process's own memory"
)
def test_memory_does_not_grow_with_epochs_and_workers(tmp_path: Path, where: Where) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    for number in range(48):
        path = tmp_path / "large" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(noise, number)).save(path)
    cached = open_cache(scan_folder(tmp_path / "large", ["a", "b"]), where, side=600)
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


@both
def test_too_large_a_cache_is_refused_before_it_is_written(source: FileSource, where: Where, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    head, marker, rest = stream.getvalue().partition(b"\xff\xc0\x00\x11\x08")
    giant = head + marker + (9000).to_bytes(2, "big") * 2 + rest[4:]  # it says that it has 9000 x 9000 pixels
    (tmp_path / "giant.jpg").write_bytes(giant)
    paths = np.full(200_000, b"giant.jpg")
    source = FileSource(paths, np.zeros(len(paths), np.int64), channels=3, root=tmp_path)
    with pytest.raises(CacheError) as error:
        open_cache(source, where, side=9000, workers=0)
    folder = str(tmp_path / "cache" / "images") if where == "disk" else "/"
    line = str(error.value)
    assert line.startswith(f"cannot cache images in {folder}")
    assert "the images take about 48.6 TB and there is room for" in line
    assert "lower --data.cache-side (now 9000)" in line
    assert ("CONVNEXT_CACHE" if where == "disk" else "--data.cache disk") in line
    assert line.endswith("or use --data.cache none")
    assert "\n" not in line
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_no_room_in_the_middle_leaves_nothing(source: FileSource, cache_folder: Path) -> None:
    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a full disk: the write fails
        with pytest.raises(CacheError, match=r"file too large; lower --data\.cache-side"):
            opened(source, "disk", workers=1)

    process = forked(run)
    process.join()
    assert process.exitcode == 0
    assert list(cache_folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(source: FileSource, cache_folder: Path) -> None:
    cache_folder.parent.write_text("a file in its place")
    with pytest.raises(CacheError, match=r"cannot cache images in .*: .*; set CONVNEXT_CACHE to a folder"):
        opened(source, "disk")


def test_the_last_user_removes_a_file_in_memory(source: FileSource) -> None:
    first, second = opened(source, "ram"), opened(source, "ram")
    first.close()
    assert second.path.exists()
    first.close()
    process = forked(second.close)  # a forked process is no user of its own
    process.join()
    assert second.path.exists()
    second.close()
    assert not second.path.exists()
    assert same_pixels(second, source)
    third = opened(source, "ram")
    path = third.path
    subset = third.subset(np.arange(3))
    del third
    assert path.exists()
    del subset
    assert not path.exists()


def test_a_file_in_memory_does_not_outlive_the_processes(source: FileSource, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"""
from pathlib import Path
from convnext.data.cache import open_cache
from convnext.data.sources import scan_folder
cached = open_cache(scan_folder(Path({str(source.root)!r}), ["a", "b"]), "ram", {SIDE}, workers=2)
assert cached.path.exists()
print(cached.path)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    path = Path(done.stdout.strip())
    assert "cached 40 images" in done.stderr
    assert not path.exists()
    assert not part_of(path).exists()

    def killed() -> None:
        _user = opened(source, "ram")
        os.kill(os.getpid(), signal.SIGKILL)

    forked(killed).join()
    assert path.exists()
    capfd.readouterr()
    cached = opened(source, "ram")  # what the killed one left is as good
    assert capfd.readouterr().err == ""
    assert same_pixels(cached, source)
    del cached
    assert not path.exists()
    forked(killed).join()
    assert path.exists()
    opened(source.subset(np.arange(10)), "ram")  # other images: room is made
    assert not path.exists()
