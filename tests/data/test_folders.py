"""Folders as people have them: few images, odd entries, splits and classes called alike, lists of other systems."""

import codecs
import os
import shutil
import socket
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from convnext.commands.datasets_check import main as check_command
from convnext.config import DataSettings
from convnext.data.datasets.load import load_splits, read_splits
from convnext.data.datasets.own import own_splits
from convnext.data.sources import ArraySource, FileSource, ImageSource, join
from convnext.data.splits import Splits, hold_out, make_splits
from convnext.errors import DataError
from convnext.inference.files import expand

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def class_folders(images: Path, root: Path, **counts: int) -> Path:
    """Class folders with so many of the digits each, in turn."""
    paths = iter(sorted((images / "train").rglob("*.png")))
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for _ in range(count):
            path = next(paths)
            shutil.copy(path, root / name / f"{path.parent.name}-{path.name}")
    return root


def names(source: ImageSource | None) -> list[str]:
    assert isinstance(source, FileSource)
    return [os.fsdecode(path) for path in source.paths.tolist()]


def counts(source: ImageSource | None, classes: int) -> list[int]:
    assert source is not None
    return np.bincount(source.targets, minlength=classes).tolist()  # type: ignore[no-any-return]


def numbers(*sizes: int) -> ArraySource:
    """So many images of each class."""
    targets = np.repeat(np.arange(len(sizes)), sizes)
    return ArraySource(np.zeros((len(targets), 2, 2), np.uint8), targets, channels=1)


# Few images a class


@pytest.mark.parametrize(
    ("classes", "each", "test", "val"), [(20, 10, 40, 20), (3, 8, 5, 3), (2, 2, 2, 0), (4, 3, 4, 4)]
)
def test_every_class_with_two_images_gives_one(
    classes: int, each: int, test: int, val: int, digits_images: Path, tmp_path: Path
) -> None:
    root = class_folders(digits_images, tmp_path / "few", **{f"c{number:02}": each for number in range(classes)})
    splits = load_splits(DataSettings(root=root))
    assert sum(counts(splits.test, classes)) == test
    assert min(counts(splits.test, classes)) >= 1
    assert sum(counts(splits.train, classes)) == classes * each - test - val
    assert min(counts(splits.train, classes)) >= 1
    if val:
        assert counts(splits.val, classes) == [1] * classes
        held_out = f"{classes} of {classes * each - test} images are held out for val, more than data.val_fraction 0.1"
        assert any(note.startswith(held_out) for note in splits.notes)
    else:
        assert splits.val is None
        assert splits.notes[-1].endswith(
            "2 of 2 classes have too few images for val, and keep all for the training: c00 (1), c01 (1)"
        )
    again = load_splits(DataSettings(root=root))
    assert again.fingerprints() == splits.fingerprints()


def test_a_class_of_a_single_image_is_trained_on_and_named(digits_images: Path, tmp_path: Path) -> None:
    root = class_folders(digits_images, tmp_path / "few", cat=30, dog=30, rare=1)
    splits = load_splits(DataSettings(root=root))
    assert [counts(source, 3) for source in (splits.train, splits.val, splits.test)] == [
        [22, 22, 1],
        [2, 2, 0],
        [6, 6, 0],
    ]
    for split in ("test", "val"):
        line = f"1 of 3 classes have too few images for {split}, and keep all for the training: rare (1)"
        assert line in splits.notes


def test_single_images_alone_cannot_be_tested(digits_images: Path, tmp_path: Path) -> None:
    root = class_folders(digits_images, tmp_path / "few", cat=1, dog=1)
    with pytest.raises(DataError, match=r"no class has two images \(there are 2 of 2 classes\).*add images, or test/"):
        load_splits(DataSettings(root=root))
    shutil.copytree(root, root / "train")
    shutil.copytree(root / "cat", root / "test" / "cat")
    assert len(load_splits(DataSettings(root=root)).test) == 1


def test_what_can_be_stratified_is_divided_as_before() -> None:
    from sklearn.model_selection import train_test_split

    source = numbers(40, 25, 11, 30)
    for fraction in (0.1, 0.2):
        stay, held_out = hold_out(source, fraction)
        expected = train_test_split(np.arange(106), test_size=fraction, random_state=0, stratify=source.targets)
        for one, indices in zip((stay, held_out), expected, strict=True):
            assert one.fingerprint() == source.subset(np.sort(indices)).fingerprint()
    splits = make_splits(tuple("abcd"), {"train": source}, 0.2)
    assert splits.notes == ()


def test_few_images_of_a_programs_own() -> None:
    from torchvision.transforms.functional import to_pil_image

    images = [(to_pil_image(np.full((8, 8), label, np.uint8)), label) for label in (0, 0, 0, 1, 1, 2)]
    splits = own_splits({"train": images}, ("a", "b", "c"), DataSettings(name="own"))  # type: ignore[dict-item]
    assert counts(splits.test, 3) == [1, 1, 0]
    assert counts(splits.val, 3) == [1, 0, 0]
    assert counts(splits.train, 3) == [1, 1, 1]


def test_joined_sources_are_their_images_in_turn(small_folder: Path) -> None:
    splits = load_splits(DataSettings(root=small_folder, val_fraction=0))
    both = join([splits.test, numbers(2, 1)])
    assert both.targets.tolist() == [*splits.test.targets.tolist(), 0, 0, 1]
    some = both.subset(np.array([16, 3]))
    assert [some.image_name(0), some.image_name(1)] == ["#1", splits.test.image_name(3)]
    assert some.load(1).tobytes() == splits.test.load(3).tobytes()
    assert len({both.fingerprint(), some.fingerprint(), join([splits.test]).fingerprint()}) == 3


# What is no image


def strange(folder: Path) -> None:
    """A pipe, links to an endless device and to itself, a socket, photographs of another format, hidden things."""
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    (folder / "again.png").symlink_to("again.png")
    (folder / "up").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        listening.bind("socket.png")
        os.chdir(before)
    for name in ("one.heic", "two.HEIC", "notes.txt", "README", ".hidden.png"):
        (folder / name).write_bytes(b"no image")
    (folder / ".cache").mkdir()
    shutil.copy(next(folder.glob("[0-9]*.png")), folder / ".cache" / "copy.png")


def test_pipes_devices_and_sockets_are_named_and_never_opened(digits_images: Path, tmp_path: Path) -> None:
    root = class_folders(digits_images, tmp_path / "images", cat=10, dog=10)
    strange(root / "cat")
    shutil.copy(next((root / "dog").iterdir()), root / "loose.png")
    splits = load_splits(DataSettings(root=root, val_fraction=0))
    read = names(splits.train) + names(splits.test)
    assert len(read) == 21
    assert "cat/again.png" in read  # a broken link is an image that cannot be read
    (line,) = splits.notes
    assert line.startswith("left out: ")
    assert f".heic 2 (such as {root}/cat/" in line
    assert line.endswith("; convert HEIC to JPEG or PNG to use it")
    assert "pipes, devices and sockets 3" in line
    assert f"images in no class folder 1 (such as {root}/loose.png)" in line
    assert check_command([str(root), "--workers", "0"]) == 1  # for the broken link


def test_prediction_walks_a_folder_as_training_does(
    digits_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = class_folders(digits_images, tmp_path / "images", cat=4, dog=4)
    other = class_folders(digits_images, tmp_path / "elsewhere", deeper=2)
    (root / "dog" / "linked").symlink_to(other)
    strange(root / "cat")
    splits = load_splits(DataSettings(root=root, val_fraction=0))
    trained = sorted(names(splits.train) + names(splits.test))
    assert sum("linked/deeper" in name for name in trained) == 2
    assert expand([str(root)]) == [f"{root}/{name}" for name in trained]
    assert capsys.readouterr().err.splitlines() == list(splits.notes)
    monkeypatch.chdir(root)
    assert [os.path.normpath(path) for path in expand(["."])] == trained
    with pytest.raises(DataError, match="no file but a pipe or a device"):
        expand([str(root / "cat" / "pipe.png")])
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").touch()
    with pytest.raises(DataError, match=r"phone has no images; left out: .heic 1"):
        expand([str(tmp_path / "phone")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(digits_images: Path, tmp_path: Path) -> None:
    root = class_folders(digits_images, tmp_path / "images", cat=4, dog=4)
    (root / "cat" / "closed").mkdir(mode=0)
    (line,) = load_splits(DataSettings(root=root, val_fraction=0)).notes
    assert "folders that cannot be read (Permission denied) 1" in line


# Which folders are splits, and which classes


@pytest.mark.parametrize("name", ["train", "test", "Val", "validation"])
def test_a_class_called_like_a_split(name: str, digits_images: Path, tmp_path: Path) -> None:
    root = class_folders(digits_images, tmp_path / "vehicles", **{"bus": 10, name: 10, "van": 10})
    splits = load_splits(DataSettings(root=root))
    assert splits.classes == tuple(sorted(("bus", name, "van")))
    assert splits.notes[0] == f"{root}: {name}/ is taken as a class, having images but no class folders, like bus/"


def test_two_classes_called_like_splits(digits_images: Path, tmp_path: Path) -> None:
    root = class_folders(digits_images, tmp_path / "words", exam=10, test=10, train=10)
    splits = load_splits(DataSettings(root=root))
    assert splits.classes == ("exam", "test", "train")
    shutil.rmtree(root / "exam")  # now images without classes are likelier
    with pytest.raises(DataError, match="train has no class folders"):
        load_splits(DataSettings(root=root))


def test_train_with_class_folders_is_a_split_whatever_lies_beside_it(small_folder: Path) -> None:
    before = load_splits(DataSettings(root=small_folder))
    assert before.notes == ()
    shutil.copytree(small_folder / "test" / "0", small_folder / "unlabelled")
    (small_folder / "papers").mkdir()
    after = load_splits(DataSettings(root=small_folder))
    assert after.fingerprints() == before.fingerprints()
    assert after.notes == (f"{small_folder}: images beside test/ and train/ are not used: unlabelled/",)


def test_dev_beside_train_is_the_validation_split(small_folder: Path) -> None:
    shutil.copytree(small_folder / "test", small_folder / "dev")
    splits = load_splits(DataSettings(root=small_folder))
    assert len(splits.train) == 60
    assert counts(splits.val, 3) == [5, 5, 5]
    assert splits.notes == (f"{small_folder}: dev/ is taken as the validation split",)
    (small_folder / "dev").rename(small_folder / "val")
    shutil.copytree(small_folder / "test", small_folder / "dev")
    (note,) = load_splits(DataSettings(root=small_folder)).notes
    assert note.endswith("are not used: dev/")


def test_dev_with_other_classes_is_not_used(small_folder: Path) -> None:
    shutil.copytree(small_folder / "test" / "0", small_folder / "dev" / "others")
    splits = load_splits(DataSettings(root=small_folder, val_fraction=0))
    assert splits.val is None
    assert splits.notes == (f"{small_folder}: images beside test/ and train/ are not used: dev/",)


def test_an_empty_folder_in_a_later_split_is_no_class(small_folder: Path) -> None:
    before = load_splits(DataSettings(root=small_folder)).fingerprints()
    (small_folder / "test" / "extra").mkdir()
    splits = load_splits(DataSettings(root=small_folder))
    assert splits.fingerprints() == before
    (line,) = splits.notes
    assert line == f"left out: empty folders of no class 1 (such as {small_folder}/test/extra)"


def test_an_empty_class_folder_is_refused_by_training_and_reported_by_the_check(
    small_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_folder / "train" / "unfilled").mkdir()
    with pytest.raises(DataError, match="class folders without images: unfilled: fill or remove them"):
        load_splits(DataSettings(root=small_folder))
    assert check_command([str(small_folder), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert "fault: 1 class without training images: fill or remove it\n  unfilled\n" in out
    assert "train 60 (0 to 20 a class)" in out
    assert "out of balance" not in out
    (small_folder / "exclude.txt").write_text("")
    assert check_command([str(small_folder), "--workers", "0", "--exclude", str(small_folder / "exclude.txt")]) == 1


# Spellings


@pytest.mark.parametrize(("train", "test"), [(NFC, NFD), (NFD, NFC)])
def test_a_class_may_be_spelled_in_another_unicode_form_in_another_split(
    train: str, test: str, small_folder: Path
) -> None:
    (small_folder / "train" / "1").rename(small_folder / "train" / train)
    (small_folder / "test" / "1").rename(small_folder / "test" / test)
    splits = load_splits(DataSettings(root=small_folder))
    assert splits.classes == ("0", "2", train)
    assert counts(splits.test, 3) == [5, 5, 5]
    assert splits.notes == ()


def test_two_spellings_of_a_class_are_one(small_folder: Path) -> None:
    (small_folder / "train" / "1").rename(small_folder / "train" / NFC)
    (small_folder / "train" / "2").rename(small_folder / "train" / NFD)
    shutil.rmtree(small_folder / "test")
    splits = read_splits(DataSettings(root=small_folder))
    assert len(splits.classes) == 2
    assert counts(splits.train, 2) == [16, 32]
    (note,) = splits.notes
    assert note.endswith("in two Unicode spellings, which are taken as one class")


def without(root: Path, content: bytes) -> Splits:
    (root / "exclude.txt").write_bytes(content)
    return load_splits(DataSettings(root=root, exclude=root / "exclude.txt"))


@pytest.mark.parametrize("system", ["plain", "bom", "utf-16", "utf-16-be", "backslashes", "crlf", "nfd", "all"])
def test_lists_of_other_systems_exclude_the_same_images(system: str, small_folder: Path) -> None:
    first, second = (sorted((small_folder / split / "1").iterdir())[0] for split in ("train", "test"))
    first = first.rename(first.with_name(f"{NFC} 1.png"))
    lines = ["# found by hand", f"train/1/{first.name}", "", f"test/1/{second.name}"]
    text = "\n".join(lines) + "\n"
    if system in ("backslashes", "all"):
        text = text.replace("/", "\\")
    if system in ("nfd", "all"):
        text = unicodedata.normalize("NFD", text)
    if system in ("crlf", "all"):
        text = text.replace("\n", "\r\n")
    encoded = {"bom": codecs.BOM_UTF8 + text.encode(), "utf-16-be": codecs.BOM_UTF16_BE + text.encode("utf-16-be")}
    encoded |= dict.fromkeys(("utf-16", "all"), text.encode("utf-16"))
    splits = without(small_folder, encoded.get(system, text.encode()))
    assert splits.notes == ()
    left = Counter([*names(splits.train), *names(splits.val), *names(splits.test)])
    assert left.total() == 73
    assert not {f"1/{first.name}", f"1/{second.name}"} & set(left)


def test_a_name_with_a_backslash_is_taken_as_it_is(small_folder: Path) -> None:
    image = next((small_folder / "train" / "1").iterdir())
    odd = image.rename(image.with_name("a\\b.png"))
    shutil.copytree(odd.parent, odd.parent / "a")
    splits = without(small_folder, b"train/1/a\\b.png\n")
    assert splits.notes == ()
    assert "1/a\\b.png" not in names(splits.train) + names(splits.val)
    with pytest.raises(DataError, match=r"data.exclude: cannot read .*it is not UTF-8 text"):
        without(small_folder, codecs.BOM_UTF16_LE + b"a")
