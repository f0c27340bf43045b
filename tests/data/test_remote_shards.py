"""WebDataset shards over HTTP, and what is the same for those on this machine."""

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import convnext
from convnext.config import AugmentSettings, DataSettings
from convnext.data.datasets.shard_files import ShardFolder
from convnext.data.datasets.webdataset import read_shards
from convnext.data.loading.loader import AugmentedImages, Batch, TrainSampler, batches
from convnext.data.splits import Splits
from convnext.data.transforms import TrainTransform
from convnext.errors import DataError
from convnext.storage.downloads import DownloadError
from tests.support.digit_shards import (
    DIGITS,
    PATTERN,
    TRAIN,
    Server,
    check,
    png,
    refused,
    sample,
    splits_of,
    write,
    write_digits,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("ranges", [True, False])
def test_images_and_labels_are_the_originals_here_and_over_http(folder: Path, server: Server, ranges: bool) -> None:
    server.ranges = ranges
    here, there = splits_of(f"{folder}/{PATTERN}"), splits_of(server.url + PATTERN)
    for splits in (here, there):
        check(splits)
        assert (len(splits.train), splits.val, len(splits.test)) == (240, None, 40)
        assert splits.classes == tuple("0123456789")
        assert splits.train.groups is not None
        assert splits.train.groups.tolist() == np.repeat(range(TRAIN), 20).tolist()
        assert np.asarray(splits.train.load(7)).tolist() == np.stack([DIGITS[7]] * 3, -1).tolist()
    assert here.train.image_name(21) == f"{folder}/digits-train-000001.tar:000021"
    assert there.train.image_name(21) == f"{server.url}digits-train-000001.tar:000021"
    assert here.fingerprints() == there.fingerprints()
    assert (here.mean, here.std) == (there.mean, there.std)
    assert sorted(server.fetched) == sorted(name for name in server.files if name.endswith(".tar"))


def test_classes_are_named_by_a_file_beside_the_shards(tmp_path: Path, server: Server) -> None:
    names = ["nought", *"123456789", "ten"]
    server.files["classes.txt"] = "\n".join(names).encode()
    assert splits_of(server.url + PATTERN).classes == tuple(names)
    shard = write(tmp_path / "train.tar", [sample(index) for index in range(40)])
    (tmp_path / "classes.txt").write_text("\n".join(names[:8]))
    refused("label 9, but there are 8 classes", str(shard))
    (tmp_path / "classes.txt").write_text("a\nb\na\n")
    refused(r"classes\.txt: a class name is empty or there twice", str(shard))


def stream(splits: Splits, workers: int, start_step: int = 0) -> list[Batch]:
    augment = AugmentSettings(crop="padding", policy="trivialaugment")
    images = AugmentedImages(splits.train, [TrainTransform(augment, 8, splits.mean)] * 2, seed=3)
    sampler = TrainSampler(len(splits.train), 32, epochs=2, seed=3, start_step=start_step, groups=splits.train.groups)
    with batches(images, sampler, workers) as batched:
        return [batch._replace(images=batch.images.clone()) for batch in batched]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in zip(one, other, strict=True)
    )


def test_batches_are_the_same_for_any_workers_and_location_and_after_an_interruption(
    folder: Path, server: Server
) -> None:
    here, there = splits_of(f"{folder}/{PATTERN}"), splits_of(server.url + PATTERN)
    expected = stream(here, workers=0)
    assert len(expected) == 14
    assert not any(batch.unreadable for batch in expected)
    assert same(stream(here, workers=2), expected)
    assert same(stream(there, workers=2), expected)
    assert same(stream(here, workers=2, start_step=9), expected[9:])
    assert pickle.loads(pickle.dumps(there.train)).raw(3) == png(3)  # how a spawned worker gets it


def test_an_index_is_made_once_and_anew_for_a_shard_that_changed(server: Server, tmp_path: Path) -> None:
    before = splits_of(server.url + PATTERN)
    server.fetched.clear()
    assert splits_of(server.url + PATTERN).fingerprints() == before.fingerprints()
    assert server.fetched == []
    other = write(tmp_path / "other.tar", [sample(index) for index in range(300, 330)])
    server.files["digits-train-000003.tar"] = other.read_bytes()
    after = splits_of(server.url + PATTERN)
    assert server.fetched == ["digits-train-000003.tar"]
    assert after.fingerprints()["train"] != before.fingerprints()["train"]
    assert after.train.raw(61) == png(301)
    local = write(tmp_path / "local.tar", [sample(index) for index in range(200)])
    first = splits_of(str(local)).fingerprints()
    write(local, [sample(index) for index in range(100, 300)])
    assert splits_of(str(local)).fingerprints() != first


def remote(server: Server, folder: ShardFolder, pattern: str = PATTERN) -> Splits:
    return read_shards(DataSettings(name=f"wds:{server.url}{pattern}", image_size=8, val_fraction=0.0), folder)


def test_a_broken_connection_is_tried_again(server: Server, tmp_path: Path) -> None:
    name = "digits-train-000004.tar"
    server.cuts[name] = 3
    check(remote(server, ShardFolder(tmp_path / "folder", pause=0)))
    assert server.fetched.count(name) == 4


def test_a_server_that_stays_broken_ends_with_one_line(server: Server, tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "folder", pause=0)
    splits = remote(server, folder)
    for path in (tmp_path / "folder").glob("*/*.tar"):
        path.unlink()
    server.statuses["digits-train-000004.tar"] = 503
    server.fetched.clear()
    with pytest.raises(DownloadError, match=r"000004\.tar: the server answers 503 .* times in a row") as error:
        splits.train.raw(4 * 20)
    assert "\n" not in str(error.value)
    assert len(server.fetched) == 5
    assert splits.train.raw(0) == png(0)
    with pytest.raises(DataError, match=r"there is no shard http.*digits-train-000012\.tar"):
        remote(server, folder, "digits-train-{000011..000012}.tar")
    server.files["digits-train-000005.tar"] += b"more"
    with pytest.raises(DataError, match="has changed on its server: start again"):
        splits.train.raw(5 * 20)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"cannot read http.*refused.*check the address and the network"):
        remote(server, folder)


def test_cached_shards_stay_within_their_room(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.data.datasets.shard_files.SHARDS_AT_ONCE", 3)
    size = max(map(len, server.files.values()))
    folder = ShardFolder(tmp_path / "folder", room=3 * size, connections=1)
    splits = remote(server, folder)

    def cached() -> list[Path]:
        paths = [path for path in folder.path.glob("*/*") if path.name != "index.json"]
        assert sum(path.stat().st_size for path in paths) <= 3 * size
        return paths

    abandoned = cached()[0].parent / ".abandoned.tar.part"
    abandoned.write_bytes(bytes(size))
    os.utime(abandoned, (0, 0))
    for index in [*range(0, 240, 10), *range(40)]:
        assert splits.train.raw(index) == png(index)
        cached()
    assert not abandoned.exists()
    # Images of shards 0 and 1 were read last: they are not fetched again.
    server.fetched.clear()
    for index in (0, 20, 100, 0, 120, 0):
        assert splits.train.raw(index) == png(index)
    assert server.fetched == ["digits-train-000005.tar", "digits-train-000006.tar"]
    with pytest.raises(DataError, match=r"3 shards at a time are .* free space, or set CONVNEXT_CACHE"):
        remote(server, ShardFolder(tmp_path / "small", room=2 * size))


def test_training_on_shards(server: Server, tmp_path: Path) -> None:
    settings = convnext.recipe("digits", epochs=1, output=tmp_path / "runs")
    run = convnext.train(settings.replace(**{"data.name": f"wds:{server.url}{PATTERN}", "batch_size": 16}))
    assert run.path.is_relative_to(tmp_path / "runs")
