"""WebDataset shards on this machine."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext.data.datasets.load import export_folder
from convnext.data.datasets.webdataset import ShardSource, expand
from convnext.data.loading.loader import TrainSampler
from convnext.data.splits import hold_out
from convnext.errors import DataError
from tests.support.digit_shards import (
    DIGITS,
    LABELS,
    PATTERN,
    TRAIN,
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


def test_statistics_are_of_training_images(folder: Path) -> None:
    splits = splits_of(f"{folder}/digits-train-{{000000..000007}}.tar", test_fraction=0.25)
    pixels = np.stack([np.asarray(splits.train.load(index)) for index in range(len(splits.train))]) / 255
    assert splits.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert splits.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


@pytest.mark.parametrize(
    ("members", "classes"),
    [
        (lambda label: {"cls": label}, ("0", "1", "2")),
        (lambda label: {"txt": f"class {label}\n"}, ("class 0", "class 1", "class 2")),
        (lambda label: {"json": {"label": label, "width": 8}}, ("0", "1", "2")),
        (lambda label: {"json": {"label": "abc"[label]}, "txt": "a caption"}, ("a", "b", "c")),
        (lambda label: {"cls": label, "json": {"caption": "x"}, "txt": "a caption"}, ("0", "1", "2")),
    ],
)
def test_labels_of_every_kind(tmp_path: Path, members: Any, classes: tuple[str, ...]) -> None:
    chosen = [index for index in range(60) if LABELS[index] < 3]
    write(tmp_path / "a-train.tar", [sample(index, **members(LABELS[index])) for index in chosen])
    write(tmp_path / "a-val.tar", [sample(index, **members(LABELS[index])) for index in chosen[:5]])
    splits = splits_of(f"{tmp_path}/a-*.tar")
    assert (splits.classes, splits.test_name, splits.val) == (classes, "val", None)
    assert splits.train.targets.tolist() == [LABELS[index] for index in chosen]
    assert splits.test.targets.tolist() == [LABELS[index] for index in chosen[:5]]


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("a-train-0.tar", "a-train-1.tar", "a-val-0.tar", "a-test-0.tar"), (40, 20, 20)),
        (("x/train/0.tar", "x/training/1.tar", "x/Validation/0.tar", "x/testing/0.tar"), (40, 20, 20)),
        (("test-set.train.0.tar", "test-set.dev.0.tar"), (20, None, 20)),
        (("contest/0.tar", "contest/1.tar", "contest/testset.tar", "contest/2.tar"), (64, None, 16)),
    ],
)
def test_splits_are_known_by_names(tmp_path: Path, names: tuple[str, ...], sizes: tuple[int | None, ...]) -> None:
    for number, name in enumerate(names):
        write(tmp_path / "val" / name, [sample(index) for index in range(number * 20, number * 20 + 20)])
    splits = splits_of("::".join(names), root=tmp_path / "val")
    assert tuple(source and len(source) for source in (splits.train, splits.val, splits.test)) == sizes


def test_patterns(tmp_path: Path) -> None:
    for name in ("a-0.tar", "a-1.tar", "b[0].tar"):
        (tmp_path / name).touch()
    paths = [f"{tmp_path}/a-0.tar", f"{tmp_path}/a-1.tar"]
    assert expand("a-{0..1}.tar", tmp_path) == expand(f"{tmp_path}/a-?.tar", None) == paths
    assert expand("a-0.tar::a-{0,1}.tar", tmp_path) == paths
    assert expand("b[0].tar", tmp_path) == [f"{tmp_path}/b[0].tar"]
    assert expand("https://host/{a,b}-{08..10}.tar?key=1", tmp_path)[-1] == "https://host/b-10.tar?key=1"
    for pattern, message in (
        ("a-{0..1.tar", "brace without its other half"),
        ("nothing-*.tar", "no file is called"),
        ("a.tar.gz", r"does not end in \.tar"),
        ("pipe:cat a-0.tar", "commands are never run"),
        ("s3://bucket/a.tar", "at http:// and https://"),
    ):
        with pytest.raises(DataError, match=message):
            expand(pattern, tmp_path)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "braceexpand", None)
    refused(r"pip install 'convnext\[wds\]'", "a.tar")


def test_shards_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "digits-train-000000.tar").read_bytes()
    shard = tmp_path / "shard.tar"
    refused("there is no shard .*/digits-train-000012.tar", f"{folder}/digits-train-{{000010..000012}}.tar")
    for length in (700, len(whole) // 3, 512 * 3, 1024 * 9):
        shard.write_bytes(whole[:length])
        refused("no tar file that can be read|damaged or truncated", str(shard))
    with tarfile.open(folder / "digits-train-000000.tar") as tar:
        offset = tar.getmembers()[5].offset
    shard.write_bytes(whole[:offset] + b"x" * 512 + whole[offset + 512 :])
    refused(f"damaged or truncated at byte {offset:,}", str(shard))
    shard.write_bytes(b"")
    refused("no tar file that can be read", str(shard))
    shard.unlink()
    shard.mkdir()
    refused("cannot be read: Is a directory", str(shard))
    shard.rmdir()

    def written(*samples: dict[str, Any]) -> str:
        return str(write(shard, [*samples]))

    refused("sample 000001 has no label", written(sample(0), {"__key__": "000001", "png": png(1)}))
    refused("has no images", written({"__key__": "000001", "cls": 1}))
    refused("some labels are numbers and others are names", written(sample(0), sample(1, txt="one")))
    refused("label -3 is below 0", written(sample(0), sample(1, cls=-3), sample(2)))
    refused("one class only", written(sample(0), sample(10)))
    refused("are its labels no classes", written(*(sample(index, txt=f"caption {index}") for index in range(9))))
    refused("are its labels no classes", written(sample(0), sample(1, cls=70_000)))
    refused("99999999999 is no class number", written(sample(0), sample(1, cls=99_999_999_999)))
    refused("'xxx.* is too long for the name of a class", written(sample(0, txt="x" * 300)))
    refused(r"unreadable \.cls", written(sample(0, cls=b"1" * 5000)))
    refused(r"unreadable \.json", written(sample(0), sample(1, json=b"{")))
    refused(r"unreadable \.cls", written(sample(0), sample(1, cls=b"\xff")))
    write(tmp_path / "test.tar", [sample(0)])
    refused("no shard is of train: all are of test", f"{tmp_path}/{{test,test}}.tar")
    write(shard, [sample(index, txt="even" if LABELS[index] % 2 == 0 else "odd") for index in range(20)])
    write(tmp_path / "test.tar", [sample(0, txt="prime")])
    refused("classes that are not known: 'prime'", f"{tmp_path}/{{shard,test}}.tar")


def test_nothing_in_a_shard_is_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    samples = [sample(index, cls=index % 2, pyd=pickle.dumps(Payload()), pickle=b"", pth=b"") for index in range(20)]
    splits = splits_of(str(write(tmp_path / "shard.tar", samples)))
    assert sum(len(splits.train.raw(index)) > 0 for index in range(len(splits.train))) == 16
    assert not (tmp_path / "ran").exists()


def test_other_members_and_writers(tmp_path: Path) -> None:
    """Folders, links, hidden files, long names, and images and labels in separate positions of the file."""
    with tarfile.open(tmp_path / "shard.tar", "w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "nowhere"
            tar.addfile(member, io.BytesIO(content))

        add("./v1.0", kind=tarfile.DIRTYPE)
        for index in range(20):
            add(f"./v1.0/{'long' * 40}/{index}.PNG", png(index))
            add(f"./v1.0/{'long' * 40}/{index}.mask.png", png(0))
        for index in range(20):
            add(f"./v1.0/{'long' * 40}/{index}.cls", b"%d" % (index % 2))
        add("./v1.0/._0.PNG", b"?")
        add("./v1.0/link.png", kind=tarfile.SYMTYPE)
        add("README", b"hello")
    splits = splits_of(f"{tmp_path}/shard.tar", test_fraction=0.5)
    originals = [png(index) for index in range(20)]
    for source in (splits.train, splits.test):
        assert all(originals.index(bytes(source.raw(i))) % 2 == source.targets[i] for i in range(len(source)))
    assert len(splits.train) + len(splits.test) == 20


def test_an_epoch_reads_shards_in_turn_and_each_image_once(folder: Path) -> None:
    groups = splits_of(f"{folder}/{PATTERN}").train.groups
    assert groups is not None
    for epoch in range(2):
        steps = list(TrainSampler(240, 20, epochs=2, seed=1, groups=groups))[epoch * 12 : epoch * 12 + 12]
        order = [index for batch in steps for _, index, _ in batch]
        assert sorted(order) == list(range(240))
        shards = groups[order]
        for shard in range(TRAIN):
            positions = np.flatnonzero(shards == shard)
            assert len(np.unique(shards[positions[0] : positions[-1] + 1])) <= 8
        assert len(np.unique(shards[:20])) > 3


def test_many_shards_are_held_out_whole_and_few_by_class(tmp_path: Path, folder: Path) -> None:
    for number in range(60):
        labels = [{"cls": index % 2} for index in range(6)]
        write(tmp_path / f"{number:02d}.tar", [sample(index, **label) for index, label in enumerate(labels)])
    splits = splits_of(f"{tmp_path}/{{00..59}}.tar", test_fraction=0.1, val_fraction=0.1)
    assert splits.val is not None
    shards = [
        set(np.unique(source.groups)) for source in (splits.train, splits.val, splits.test) if source.groups is not None
    ]
    assert list(map(len, shards)) == [48, 6, 6]
    assert len(set.union(*shards)) == 60
    few = splits_of(f"{folder}/digits-train-{{000000..000011}}.tar", test_fraction=0.25, val_fraction=0.25)
    assert few.val is not None
    assert list(map(len, (few.train, few.val, few.test))) == [135, 45, 60]
    assert (np.bincount(few.test.targets) - np.bincount(splits_of(f"{folder}/{PATTERN}").train.targets) / 4 < 1).all()


def test_many_shards_of_a_class_each_are_held_out_by_class(tmp_path: Path) -> None:
    for number in range(50):
        write(tmp_path / f"{number:02d}.tar", [sample(index, cls=number) for index in range(4)])
    splits = splits_of(f"{tmp_path}/{{00..49}}.tar", test_fraction=0.25)
    assert np.bincount(splits.test.targets).tolist() == [1] * 50
    assert isinstance(splits.train, ShardSource)
    assert len(hold_out(splits.train, 0.5)[0]) == 75


def test_a_damaged_index_is_made_anew(folder: Path, cache: Path) -> None:
    before = splits_of(f"{folder}/{PATTERN}").fingerprints()
    for path in cache.glob("shards/*/index.json"):
        assert json.loads(path.read_text())["labels"]
        path.write_text("{")
    assert splits_of(f"{folder}/{PATTERN}").fingerprints() == before


def test_a_shard_that_vanishes_or_shrinks_is_unreadable(tmp_path: Path) -> None:
    shard = write(tmp_path / "shard.tar", [sample(index, cls=index % 2) for index in range(40)])
    splits = splits_of(str(shard))
    shard.write_bytes(shard.read_bytes()[:2048])
    with pytest.raises(DataError, match=r"shard\.tar:0000\d\d: unreadable image \(its shard ends before it\)"):
        splits.train.load(len(splits.train) - 1)
    shard.unlink()
    with pytest.raises(DataError, match=r"unreadable image \(No such file"):
        splits.train.load(0)


def test_export(folder: Path, tmp_path: Path) -> None:
    export_folder(splits_of(f"{folder}/{PATTERN}"), tmp_path / "exported")
    assert len(list((tmp_path / "exported" / "train").glob("?/*.png"))) == 240
    first = tmp_path / "exported" / "train" / str(LABELS[0]) / "00000.png"
    assert np.asarray(Image.open(first)).tolist() == np.stack([DIGITS[0]] * 3, -1).tolist()
