"""Data sets in the layout of the Hugging Face Hub, from folders; and what is said where the Hub is needed."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from PIL import Image

import convnext
from convnext.config import AugmentSettings, DataSettings
from convnext.data.datasets.hub import hub_splits
from convnext.data.datasets.load import export_folder, load_splits
from convnext.data.images import UnreadableImageError
from convnext.data.loading.loader import AugmentedImages, Batch, TrainSampler, batches
from convnext.data.splits import Splits
from convnext.data.transforms import TrainTransform
from convnext.errors import UserError
from tests.support.digit_shards import DIGITS, LABELS, png

NAMES = ["nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CLASSES = datasets.ClassLabel(names=NAMES)


def write(folder: Path, splits: dict[str, range], columns: dict[str, Any] | None = None) -> Path:
    """A repository of parquet files; columns by name: (feature, value of each row by index)."""
    columns = columns or {"image": (datasets.Image(), png), "label": (CLASSES, LABELS.__getitem__)}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    card = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, rows in splits.items():
        values = {name: [encoded(value(index)) for index in rows] for name, (_, value) in columns.items()}
        table = datasets.Dataset.from_dict(values, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000.parquet")
        card += [f"  - split: {split}", f"    path: data/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", "# Digits", ""]))
    return folder


def encoded(value: object) -> object:
    return {"bytes": value, "path": None} if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": range(200), "validation": range(200, 240), "test": range(240, 300)}
    return write(tmp_path_factory.mktemp("hub") / "digits", splits)


def settings(name: object, cache: Path, **others: Any) -> DataSettings:
    return DataSettings(**{"name": f"hf:{name}", "root": cache, "image_size": 8, "val_fraction": 0.0} | others)


def refused(message: str, name: object, cache: Path, **others: Any) -> None:
    with pytest.raises(UserError, match=message) as error:
        hub_splits(settings(name, cache, **others))
    assert "\n" not in str(error.value)


def test_images_and_labels_are_the_originals(repository: Path, tmp_path: Path) -> None:
    splits = load_splits(settings(repository, tmp_path))
    assert splits.classes == tuple(NAMES)
    for name, first in (("train", 0), ("val", 200), ("test", 240)):
        source = splits.split(name)
        assert source is not None
        for index in range(len(source)):
            assert source.raw(index) == png(first + index)
            assert source.targets[index] == LABELS[first + index]
    assert splits.val is not None
    assert list(map(len, (splits.train, splits.val, splits.test))) == [200, 40, 60]
    assert (splits.test_name, splits.channels, splits.val.image_name(3)) == ("test", 3, f"{repository}/validation[3]")
    assert np.asarray(splits.train.load(5)).tolist() == np.stack([DIGITS[5]] * 3, -1).tolist()
    assert splits.mean == pytest.approx([DIGITS[:200].mean() / 255] * 3, abs=1e-4)
    assert splits.train.subset(np.array([4, 2])).raw(1) == png(2)


def test_a_folder_relative_to_the_working_one(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    assert len(hub_splits(settings("./digits", tmp_path)).train) == 200
    refused("there is no folder nothing/here/at-all", "nothing/here/at-all", tmp_path)
    refused(r"there is no folder \.\./missing", "../missing", tmp_path)
    refused(f"there is no folder {tmp_path}/missing", tmp_path / "missing", tmp_path)
    refused("give hf:owner/name", "", tmp_path)


def test_fingerprints_depend_on_the_images_and_labels_alone(repository: Path, tmp_path: Path) -> None:
    before = hub_splits(settings(repository, tmp_path / "one")).fingerprints()
    copy = tmp_path / "elsewhere"
    shutil.copytree(repository, copy)
    assert hub_splits(settings(copy, tmp_path / "two")).fingerprints() == before
    splits = hub_splits(settings(copy, tmp_path / "two"))
    assert splits.train.subset(np.arange(199)).fingerprint() != before["train"]
    write(copy, {"train": range(1, 201), "validation": range(200, 240), "test": range(240, 300)})
    after = hub_splits(settings(copy, tmp_path / "two")).fingerprints()
    assert after["train"] != before["train"]
    assert (after["val"], after["test"]) == (before["val"], before["test"])


@pytest.mark.parametrize(
    ("splits", "sizes", "test_name"),
    [
        (("train",), (225, None, 75), "test"),
        (("train", "validation"), (150, None, 150), "val"),
        (("train", "dev"), (150, None, 150), "val"),
        (("training", "val", "testing"), (100, 100, 100), "test"),
        (("train", "test", "unlabelled"), (100, None, 100), "test"),
    ],
)
def test_splits(tmp_path: Path, splits: tuple[str, ...], sizes: tuple[int | None, ...], test_name: str) -> None:
    size = 300 // len(splits)
    rows = {split: range(number * size, number * size + size) for number, split in enumerate(splits)}
    loaded = hub_splits(settings(write(tmp_path / "set", rows), tmp_path / "cache", test_fraction=0.25))
    assert tuple(source and len(source) for source in (loaded.train, loaded.val, loaded.test)) == sizes
    assert loaded.test_name == test_name
    if splits == ("train",):
        again = hub_splits(settings(tmp_path / "set", tmp_path / "cache", test_fraction=0.25))
        assert again.fingerprints() == loaded.fingerprints()
        assert np.abs(np.bincount(loaded.test.targets) * 4 - np.bincount(LABELS[:300])).max() <= 4


def test_a_test_split_whose_labels_are_hidden_is_not_tested_on(tmp_path: Path) -> None:
    def label(index: int) -> int:
        return LABELS[index] if index < 100 else -1

    columns = {"image": (datasets.Image(), png), "label": (CLASSES, label)}
    splits = {"train": range(60), "validation": range(60, 100), "test": range(100, 120)}
    folder = write(tmp_path / "set", splits, columns)
    loaded = hub_splits(settings(folder, tmp_path / "cache"))
    assert (loaded.test_name, len(loaded.test)) == ("val", 40)
    write(folder, {"train": range(90, 110), "test": range(90)}, columns)
    refused(r"set/train: 10 of 20 rows have no label, such as row 10", folder, tmp_path / "cache")


def test_columns(tmp_path: Path) -> None:
    """Which are the images and the labels, of those there are."""
    image, other = (datasets.Image(), png), (datasets.Image(), lambda _: png(0))
    label, wrong = (CLASSES, LABELS.__getitem__), (datasets.ClassLabel(names=["a", "b"]), lambda index: index % 2)
    text = (datasets.Value("string"), lambda index: NAMES[LABELS[index]])
    number = (datasets.Value("int32"), LABELS.__getitem__)
    folder = tmp_path / "set"

    def load(columns: dict[str, Any]) -> Splits:
        splits = hub_splits(settings(write(folder, {"train": range(100)}, columns), tmp_path / "cache"))
        assert splits.train.raw(0) in [png(index) for index in range(100)]
        return splits

    assert load({"picture": image, "kind": label}).classes == tuple(NAMES)
    assert load({"thumbnail": other, "img": image, "coarse_label": wrong, "fine_label": label}).classes[0] == "nought"
    assert load({"image": image, "label": text, "caption": text}).classes == tuple(sorted(NAMES))
    assert load({"jpg": image, "cls": number}).classes == tuple("0123456789")
    for columns, message in (
        ({"a": image, "b": image, "label": label}, r"several columns of images.* a \(Image\), b \(Image\)"),
        ({"image": image, "caption": text}, r"no column of classes, among image \(Image\), caption \(string\)"),
        ({"label": label}, "no column of images"),
        ({"image": image, "label": (datasets.Value("float32"), float)}, "'label': labels of type float"),
        ({"image": image, "label": (datasets.Value("string"), str)}, "are its labels no classes"),
        ({"image": image, "label": (datasets.Value("string"), lambda _: "one")}, "one class only"),
    ):
        write(folder, {"train": range(100)}, columns)
        refused(message, folder, tmp_path / "cache")
    write(folder, {"test": range(100)})
    refused("has no split called train: it has test", folder, tmp_path / "cache")


def test_a_class_that_the_training_rows_lack(tmp_path: Path) -> None:
    columns = {
        "image": (datasets.Image(), png),
        "label": (datasets.Value("string"), lambda index: NAMES[LABELS[index]]),
    }
    zero_or_one = [index for index in range(300) if LABELS[index] < 2]
    folder = write(tmp_path / "set", {"train": range(300), "test": range(20)}, columns)
    assert len(hub_splits(settings(folder, tmp_path / "cache")).test) == 20
    write(folder, {"train": zero_or_one, "test": range(20)}, columns)  # type: ignore[dict-item]  # any integers do
    refused(r"\(test\) has classes that are not known: 'eight', 'five'", folder, tmp_path / "cache")


def test_a_folder_of_images(small_folder: Path, tmp_path: Path) -> None:
    splits = hub_splits(settings(small_folder, tmp_path / "cache"))
    assert (len(splits.train), len(splits.test), splits.classes) == (60, 15, ("0", "1", "2"))
    assert splits.train.load(0).mode == "RGB"
    first = int(np.flatnonzero(splits.train.targets == 0)[0])
    for path in (small_folder / "train" / "0").iterdir():
        path.unlink()
    with pytest.raises(UnreadableImageError, match=r"/train/0/.*png: unreadable image \(No such file"):
        splits.train.load(first)


def test_rows_without_an_image_are_unreadable(tmp_path: Path) -> None:
    columns = {
        "image": (datasets.Image(), lambda index: None if index == 3 else b"no image" if index == 4 else png(index)),
        "label": (CLASSES, LABELS.__getitem__),
    }
    splits = hub_splits(
        settings(write(tmp_path / "set", {"train": range(50), "test": range(9)}, columns), tmp_path / "c")
    )
    for index, reason in ((3, "the row has none"), (4, "no image format")):
        with pytest.raises(UnreadableImageError, match=rf"set/train\[{index}\]: unreadable image \({reason}"):
            splits.train.load(index)
    assert splits.fingerprints()


def test_batches_are_the_same_for_any_workers_and_after_an_interruption(repository: Path, tmp_path: Path) -> None:
    splits = load_splits(settings(repository, tmp_path))

    def stream(workers: int, start_step: int = 0) -> list[Batch]:
        augment = AugmentSettings(crop="padding", policy="trivialaugment")
        images = AugmentedImages(splits.train, [TrainTransform(augment, 8, splits.mean)] * 2, seed=3)
        sampler = TrainSampler(len(splits.train), 32, epochs=2, seed=3, start_step=start_step)
        with batches(images, sampler, workers) as batched:
            return [batch._replace(images=batch.images.clone()) for batch in batched]

    expected = stream(0)
    for batch, other in zip(expected, stream(2), strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.targets, other.targets)
    assert all(torch.equal(a.images, b.images) for a, b in zip(expected[7:], stream(1, 7), strict=True))
    pickled = pickle.dumps(splits.train)  # how a spawned worker gets it: the files' paths, not their contents
    assert len(pickled) < len(png(0)) * 100
    assert pickle.loads(pickled).raw(3) == png(3)


def test_configurations(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"train": range(100)})
    (folder / "data").rename(folder / "plain")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  data_files: plain/*\n- config_name: other\n  data_files: plain/*\n---\n"
    )
    assert len(hub_splits(settings(f"{folder}:plain", tmp_path / "cache")).train) == 80
    refused(r"\['plain', 'other'\]; give its name: hf:owner/name:config", folder, tmp_path / "cache")
    refused(r"'third' not found. Available: \['plain', 'other'\]", f"{folder}:third", tmp_path / "cache")


def test_folders_that_cannot_be_loaded(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("cannot load .*/empty: The directory at .* doesn't contain any data files", tmp_path / "empty", tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(repository, damaged)
    file = damaged / "data" / "train-00000.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    refused(r"cannot load .*/damaged: .*magic bytes", damaged, tmp_path / "cache")
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused("cannot load .*/script: ", script, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_without_the_package_or_with_one_that_runs_code_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "__version__", "3.6.0")
        refused(r"from version 4 on: pip install 'convnext\[hub\]'", "owner/name", tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(r"pip install 'convnext\[hub\]'", "owner/name", tmp_path)


def test_data_sets_of_the_hub_without_a_network(tmp_path: Path) -> None:
    code = (
        "from convnext.config import DataSettings\nfrom convnext.data.datasets.hub import hub_splits\n"
        "from convnext.errors import DataError\n"
        "for name in ('nobody/nothing', 'nobody/nothing:config', 'mnist'):\n"
        "    try: hub_splits(DataSettings(name='hf:' + name))\n"
        "    except DataError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"cannot load {name}" for name in 2 * ["nobody/nothing"] + ["mnist"]
    ]
    for line in lines:
        assert "Couldn't reach" in line
        assert line.endswith("check the network (and HF_HUB_OFFLINE), or give a folder that has it: hf:./folder")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub.\nAsk."), "ask for access on its page"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), "check the name"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (IndexError(), "IndexError"),
    ],
)
def test_what_the_hub_answers_comes_with_advice(
    error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package's own errors, which take the Hub to happen."""

    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused(f"cannot load a/b: .*{advice}", "a/b", tmp_path)


def test_export(repository: Path, tmp_path: Path) -> None:
    export_folder(load_splits(settings(repository, tmp_path / "cache")), tmp_path / "exported")
    assert len(list((tmp_path / "exported" / "train").glob("*/*.png"))) == 240
    first = tmp_path / "exported" / "test" / NAMES[LABELS[240]] / "00000.png"
    assert np.asarray(Image.open(first)).tolist() == np.stack([DIGITS[240]] * 3, -1).tolist()


def test_training(repository: Path, tmp_path: Path) -> None:
    recipe = convnext.recipe("digits", epochs=1, output=tmp_path / "runs", batch_size=20)
    run = convnext.train(recipe.replace(**{"data.name": f"hf:{repository}", "data.root": tmp_path / "cache"}))
    assert run.path.is_relative_to(tmp_path / "runs")
