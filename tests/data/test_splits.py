"""The steps from a data set's files to its splits, each by itself; and the folder that is listed once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext import recipes
from convnext.config import DataSettings
from convnext.data import files
from convnext.data.datasets.load import (
    exclude_images,
    hold_out_val,
    load_splits,
    measure_statistics,
    read_splits,
    take_fold,
)
from convnext.data.sources import ArraySource, FileSource
from convnext.data.splits import make_splits
from convnext.errors import DataError


def test_the_steps_are_what_loading_does(small_folder: Path) -> None:
    image = next((small_folder / "train" / "1").iterdir())
    (small_folder / "exclude.txt").write_text(f"train/1/{image.name}\n")
    settings = DataSettings(root=small_folder, exclude=small_folder / "exclude.txt", val_fraction=0.25)
    read = read_splits(settings)
    assert (len(read.train), read.val, read.mean) == (60, None, ())
    excluded = exclude_images(read, settings)
    assert (len(excluded.train), excluded.val, excluded.mean) == (59, None, ())
    measured = measure_statistics(excluded, settings)
    assert (measured.train, measured.val) == (excluded.train, None)
    divided = hold_out_val(measured, settings)
    assert divided.val is not None
    assert len(divided.train) + len(divided.val) == 59
    loaded = load_splits(settings)
    assert divided.fingerprints() == loaded.fingerprints()
    assert (divided.mean, divided.std) == (loaded.mean, loaded.std) != ((), ())


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_in_folds_every_image_is_tested_once(name: str, small_folder: Path) -> None:
    root = small_folder if name == "folder" else None
    settings = DataSettings(name=name, root=root, image_size=8, folds=5, val_fraction=0.2)
    own = read_splits(settings)
    total = len(own.train) + len(own.test)
    folds = [load_splits(settings.replace(fold=fold)) for fold in range(5)]
    tested = []
    for fold in folds:
        assert fold.val is not None
        assert fold.test_name == "test"
        assert len(fold.train) + len(fold.val) + len(fold.test) == total
        shown = [{source.image_name(i) for i in range(len(source))} for source in (fold.train, fold.val, fold.test)]
        if name == "folder":  # names of arrays' images are numbers in their own split
            assert shown[0] & shown[1] == shown[0] & shown[2] == shown[1] & shown[2] == set()
        counts = np.bincount(fold.test.targets)
        assert counts.max() - counts.min() <= (0 if name == "folder" else 3)  # the digits are not quite balanced
        tested += [fold.test.picture(i).decode().tobytes() for i in range(len(fold.test))]
    everything = [source.picture(i).decode().tobytes() for source in (own.train, own.test) for i in range(len(source))]
    assert sorted(tested) == sorted(everything)
    assert len({fold.fingerprints()["test"] for fold in folds}) == 5
    assert load_splits(settings.replace(fold=2)).fingerprints() == folds[2].fingerprints()


def test_a_class_of_fewer_images_than_folds_is_named(small_folder: Path) -> None:
    settings = DataSettings(root=small_folder, folds=26)
    with pytest.raises(
        DataError, match=r"data\.folds: 26 folds need as many images of each class, and 0 has 25, 1 has"
    ):
        take_fold(read_splits(settings), settings)


def test_what_needs_no_statistics_reads_no_pixel(small_folder: Path) -> None:
    for path in small_folder.rglob("*.png"):
        path.write_bytes(b"damaged")
    settings = DataSettings(root=small_folder)
    divided = hold_out_val(exclude_images(read_splits(settings), settings), settings)
    assert [len(source) for source in (divided.train, divided.test)] == [54, 15]
    with pytest.raises(DataError, match="none of 60 images can be read; the first: "):
        load_splits(settings)


def numbers(count: int) -> ArraySource:
    return ArraySource(np.zeros((count, 2, 2), np.uint8), np.arange(count) % 2, channels=1)


def test_val_without_test_is_the_test() -> None:
    train, val, test = numbers(20), numbers(8), numbers(6)
    both = make_splits(("a", "b"), {"train": train, "val": val, "test": test}, 0.25)
    assert (both.val, both.test, both.test_name) == (val, test, "test")
    reported = make_splits(("a", "b"), {"train": train, "val": val}, 0.25)
    assert (reported.train, reported.val, reported.test, reported.test_name) == (train, None, val, "val")
    chosen_by = make_splits(("a", "b"), {"train": train, "val": val}, 0.25, val_chooses=True)
    assert chosen_by.val is chosen_by.test is val
    drawn = make_splits(("a", "b"), {"train": train}, 0.3)
    assert (len(drawn.train), drawn.val, len(drawn.test), drawn.test_name) == (14, None, 6, "test")


def test_a_class_folder_called_dev_is_a_class(small_folder: Path) -> None:
    (small_folder / "train" / "1").rename(small_folder / "train" / "dev")
    assert read_splits(DataSettings(root=small_folder / "train")).classes == ("0", "2", "dev")


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the class folders that are listed."""
    names: list[str] = []
    walk = files.image_files

    def counted(folder: str, *options: Any) -> Iterator[str]:
        names.append(Path(folder).name)
        return walk(folder, *options)

    monkeypatch.setattr(files, "image_files", counted)
    return names


def settle(root: Path) -> None:
    """Let all folders be an hour old: a folder of just now is listed each time, since it may still be changing."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        changed = folder.stat().st_mtime - 3600
        os.utime(folder, (changed, changed))


def test_choosing_by_the_images_and_training_list_them_once(small_folder: Path, walks: list[str]) -> None:
    settle(small_folder)
    settings = recipes.recipe("folder", **{"data.root": small_folder})
    assert sorted(walks) == ["0", "0", "1", "1", "2", "2"]  # of train/ and test/
    splits = load_splits(settings.data)
    assert len(walks) == 6
    assert isinstance(splits.train, FileSource)
    assert splits.train.root == small_folder / "train"


@pytest.mark.parametrize("change", ["added", "removed", "nested"])
def test_a_folder_that_changed_is_listed_anew(change: str, small_folder: Path, walks: list[str]) -> None:
    folder = small_folder / "train" / "0"
    (folder / "nested").mkdir()
    image = sorted(folder.glob("*.png"))[0]
    settle(small_folder)
    before = read_splits(DataSettings(root=small_folder))
    if change == "removed":
        image.unlink()
    else:
        (folder / ("nested" if change == "nested" else "") / "new.png").write_bytes(image.read_bytes())
    after = read_splits(DataSettings(root=small_folder))
    assert len(after.train) - len(before.train) == (-1 if change == "removed" else 1)
    assert sorted(walks) == ["0", "0", "0", "1", "1", "1", "2", "2", "2"]  # test/ has not changed


def test_a_folder_of_just_now_is_listed_each_time(small_folder: Path, walks: list[str]) -> None:
    for folder in ("train/0", "test/0"):
        os.utime(small_folder / folder)
    for _ in range(2):
        read_splits(DataSettings(root=small_folder))
    assert len(walks) == 12
