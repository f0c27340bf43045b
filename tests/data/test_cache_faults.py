"""A cache is whole or not there, whatever happens to processes and disks."""

import io
import os
import resource
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import get_worker_info

from convnext.data.cache.source import CacheError, open_cache
from convnext.data.sources import FileSource
from convnext.errors import DataError
from convnext.storage.locks import alone
from tests.support.caching import forked, make_images, opened, same_pixels, unfinished


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    return make_images(tmp_path / "images")


class KillingSource(FileSource):
    """Kills the process that makes the cache from one of its workers, as running out of memory would."""

    def raw(self, index: int) -> bytes:
        if index == 30 and get_worker_info() is not None:
            os.kill(os.getppid(), signal.SIGKILL)
        return self.path(index).read_bytes()


def test_a_kill_while_the_file_is_written(source: FileSource) -> None:
    path = opened(source).path
    path.unlink(missing_ok=True)
    killed = forked(opened, KillingSource(**vars(source)), 2)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(unfinished(path)) == 1
    assert not path.exists()
    other = opened(source.subset(np.arange(10)))  # clears away what nobody goes on with
    assert unfinished(path) == []
    path.with_name(f".{path.name}.1.tmp").write_bytes(b"of a process with the number of one that runs now")
    cached = opened(source)
    assert same_pixels(cached, source)
    assert sorted(path.parent.iterdir()) == sorted([path, other.path])
    assert same_pixels(other, source.subset(np.arange(10)))


class DyingSource(FileSource):
    """Kills one of the workers that decode."""

    def raw(self, index: int) -> bytes:
        if index == 30 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.path(index).read_bytes()


class LosingSource(FileSource):
    """Cannot go on in the middle, as where a server is gone that has the images."""

    def raw(self, index: int) -> bytes:
        if index == 30:
            raise DataError("the server is gone")
        return self.path(index).read_bytes()


def test_a_worker_that_dies_names_the_file_and_leaves_nothing(source: FileSource) -> None:
    path = opened(source).path
    path.unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"a process that reads images died \(pid [\d, ]+\) at ") as error:
        opened(DyingSource(**vars(source)), workers=2)
    assert source.image_name(30) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(path.parent.iterdir()) == []
    assert same_pixels(opened(source), source)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_had_any_more_leave_nothing(source: FileSource, cache_folder: Path, workers: int) -> None:
    with pytest.raises(DataError, match=r"^the server is gone$"):
        opened(LosingSource(**vars(source)), workers)
    assert list(cache_folder.iterdir()) == []


def test_a_run_waits_for_another_and_takes_over_where_that_dies(source: FileSource) -> None:
    path = opened(source).path
    path.unlink()
    receiving, sending = os.pipe()

    def run() -> None:
        sys.stderr = os.fdopen(sending, "w")
        sys.exit(not same_pixels(opened(source), source))

    with ExitStack() as other:
        other.enter_context(alone(path.with_name(f".{path.name}.lock")))
        waiting = forked(run)
        os.close(sending)
        with os.fdopen(receiving) as output:
            assert output.readline() == "waiting for another process, which caches the same images\n"
            assert not path.exists()
            other.close()
            assert output.readline().startswith("cached 40 images")
    waiting.join()
    assert waiting.exitcode == 0
    assert path.exists()


@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "text", "header", "index"])
def test_a_damaged_file_is_made_anew(source: FileSource, damage: str) -> None:
    user = opened(source)
    data = bytearray(user.path.read_bytes())
    if damage == "header":
        data[20:40] = b"x" * 20
    elif damage == "index":
        data[-40] ^= 1
    others = {"truncated": data[:-1], "longer": data + b"x", "empty": bytearray(), "text": bytearray(b"no images")}
    changed = others.get(damage, data)
    user.path.unlink()  # another file: the one that is mapped stays
    user.path.write_bytes(changed)
    cached = opened(source)
    assert same_pixels(cached, source)
    assert cached.path.read_bytes() != changed
    assert same_pixels(user, source)


def test_too_large_a_cache_is_refused_before_it_is_written(source: FileSource, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    head, marker, rest = stream.getvalue().partition(b"\xff\xc0\x00\x11\x08")
    giant = head + marker + (9000).to_bytes(2, "big") * 2 + rest[4:]  # it says that it has 9000 x 9000 pixels
    (tmp_path / "giant.jpg").write_bytes(giant)
    paths = np.full(200_000, b"giant.jpg")
    source = FileSource(paths, np.zeros(len(paths), np.int64), channels=3, root=tmp_path)
    with pytest.raises(CacheError) as error:
        open_cache(source, image_size=9000, workers=0)
    line = str(error.value)
    assert line.startswith(f"cannot cache images in {tmp_path / 'cache' / 'images'}: ")
    assert "the images take about 48.6 TB and there is room for" in line
    assert "lower --data.cache-image-size (now 9000)" in line
    assert "CONVNEXT_CACHE" in line
    assert line.endswith("or use --data.cache none")
    assert "\n" not in line
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_no_room_in_the_middle_leaves_nothing(source: FileSource, cache_folder: Path) -> None:
    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a full disk: the write fails
        with pytest.raises(CacheError, match=r"file too large; lower --data\.cache-image-size"):
            opened(source, workers=1)

    process = forked(run)
    process.join()
    assert process.exitcode == 0
    assert list(cache_folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(source: FileSource, cache_folder: Path) -> None:
    cache_folder.parent.write_text("a file in its place")
    with pytest.raises(CacheError, match=r"cannot cache images in .*: .*; set CONVNEXT_CACHE to a folder"):
        opened(source)
