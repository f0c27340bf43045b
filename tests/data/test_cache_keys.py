"""A cache is that of these images, also where others have their names, sizes and labels."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.config import DataSettings
from convnext.data.cache.file import CacheFile
from convnext.data.datasets.load import load_splits
from convnext.data.images import UnreadableImageError
from convnext.data.sources import ImageSource, digest
from tests.support.caching import SIZE, make_images, opened, same_pixels
from tests.support.digit_shards import splits_of, write


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def make_folder(root: Path, value: int, count: int = 6) -> Path:
    """Grey squares of two classes, as files whose sizes say nothing of their pixels."""
    for number in range(2 * count):
        path = root / "train" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (value + number,) * 3).save(path)
    return root


def test_files_have_the_keys_by_which_older_versions_left_them(tmp_path: Path) -> None:
    source = make_images(tmp_path / "images")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    root = os.path.realpath(tmp_path / "images")
    read_as = [source.channels, SIZE, source.max_pixels, source.max_value]
    name = digest(json.dumps([root, source.fingerprint(), *read_as]).encode())
    stats = [(Path(root) / os.fsdecode(path)).stat() for path in source.paths.tolist()]
    states = [f"{stat.st_size} {stat.st_mtime_ns} {stat.st_mode}".encode() for stat in stats]
    path = opened(source).path
    assert path.stem == name
    assert CacheFile.open(path, digest(b"\0".join((name.encode(), *states)))) is not None


def test_folds_of_other_folders_are_other_images(tmp_path: Path) -> None:
    roots = [make_folder(tmp_path / str(value), value) for value in (10, 100)]
    first, second = (load_splits(DataSettings(root=root, folds=3, val_fraction=0)).train for root in roots)
    assert first.fingerprint() == second.fingerprint()
    assert same_pixels(opened(first), first)
    assert same_pixels(opened(second), second)
    other_fold = load_splits(DataSettings(root=roots[0], folds=3, fold=1, val_fraction=0)).train
    assert same_pixels(opened(other_fold), other_fold)


def test_changed_files_in_folds_are_read_again(tmp_path: Path) -> None:
    settings = DataSettings(root=make_folder(tmp_path / "images", 10), folds=3, val_fraction=0)
    before = opened(load_splits(settings).train)
    path = Path(before.image_name(3))
    status = path.stat()
    Image.new("RGB", (8, 8), (200,) * 3).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = opened(load_splits(settings).train)
    assert after.path == before.path
    assert np.unique(after.raw(3)).tolist() == [200]


def test_folds_are_read_as_the_settings_say(tmp_path: Path) -> None:
    settings = DataSettings(root=make_folder(tmp_path / "images", 10), folds=3, val_fraction=0)
    assert same_pixels(opened(source := load_splits(settings).train), source)
    measured = {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # which nothing is read for then
    small = load_splits(settings.replace(max_pixels=10, **measured)).train
    with pytest.raises(UnreadableImageError, match=r"--data\.max-pixels allows"):
        opened(small).load(0)


def write_shard(folder: Path, value: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(12):
        Image.new("RGB", (8, 8), (value + number,) * 3).save(folder / "image.bmp")
        samples.append({"__key__": str(number), "bmp": (folder / "image.bmp").read_bytes(), "cls": number % 2})
    write(folder / "train.tar", samples)
    return f"{folder}/train.tar"


def test_shards_elsewhere_and_changed_ones_are_other_images(tmp_path: Path) -> None:
    def train(pattern: str) -> ImageSource:
        return splits_of(pattern).train

    patterns = [write_shard(tmp_path / str(value), value) for value in (10, 100)]
    first, second = map(train, patterns)
    assert first.fingerprint() == second.fingerprint()
    before = opened(first)
    assert same_pixels(opened(second), second)
    write_shard(tmp_path / "10", 150)
    changed = train(patterns[0])
    assert changed.fingerprint() == first.fingerprint()
    assert same_pixels(after := opened(changed), changed)
    assert after.path == before.path


def test_folders_in_the_hubs_layout_elsewhere_and_changed_ones_are_other_images(tmp_path: Path) -> None:
    def train(root: Path) -> ImageSource:
        return load_splits(DataSettings(name=f"hf:{root}", root=tmp_path / "copies", val_fraction=0)).train

    roots = [make_folder(tmp_path / str(value), value) for value in (10, 100)]
    first, second = map(train, roots)
    assert first.fingerprint() == second.fingerprint()
    before = opened(first)
    assert same_pixels(opened(second), second)
    make_folder(roots[0], 150)
    changed = train(roots[0])
    assert changed.fingerprint() == first.fingerprint()
    assert same_pixels(after := opened(changed), changed)
    assert after.path == before.path
