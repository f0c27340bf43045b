"""`convnext datasets check` finds every fault planted among photographs, and nothing among the clean ones."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convnext.commands.datasets_check import main as check_command
from convnext.config import DataSettings
from convnext.data.audit.check import Findings, Group, Item, check
from convnext.data.datasets.load import exclude_images, read_splits
from convnext.data.images import Raw
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.errors import DataError, SettingsError
from tests.support.photographs import SIDE, patches


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for number, image in enumerate(patches()):
        folder = root / ("test" if number % 4 == 3 else "train") / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:02d}.png")
    return root


@pytest.fixture
def clean(photographs: Path, tmp_path: Path) -> Path:
    """Three classes with 12 training and 4 test images each: train/a/00.png, test/a/03.png, …"""
    return shutil.copytree(photographs, tmp_path / "images")


def findings_of(root: Path, workers: int | None = 0, exclude: Path | None = None) -> Findings:
    """What the folder's check says."""
    settings = DataSettings(root=root, exclude=exclude)
    return check(exclude_images(read_splits(settings), settings), workers)


def names(root: Path, items: list[Item] | tuple[Item, ...]) -> list[str]:
    return [str(Path(item.name).relative_to(root)) for item in items]


def leaks(root: Path, findings: Findings) -> list[tuple[str, str, bool]]:
    return [(*names(root, (leak.copy, leak.original)), leak.exact) for leak in findings.leaks]  # type: ignore[misc]


def groups(root: Path, some: list[Group]) -> list[list[str]]:
    return [names(root, group.items) for group in some]


def plant(root: Path) -> None:
    """One of each fault."""
    whole = (root / "train/a/00.png").read_bytes()
    (root / "train/a/truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/b/empty.jpg").write_bytes(b"")
    (root / "test/c/text.png").write_text("no image\n" * 100)
    shutil.copy(root / "train/b/01.png", root / "train/b/duplicate.png")
    small = Image.open(root / "train/c/02.png").resize((SIDE // 2, SIDE // 2))
    small.save(root / "train/c/small.jpg", quality=70)
    shutil.copy(root / "test/a/03.png", root / "train/a/leak.png")
    Image.open(root / "test/b/07.png").save(root / "train/b/near leak.jpg", quality=60)
    shutil.copy(root / "train/a/12.png", root / "train/c/conflict.png")


LEFT_OUT = {
    "unreadable": ["train/a/truncated.png", "train/b/empty.jpg", "test/c/text.png"],
    "in a later split too": ["train/a/leak.png"],
    "the same image under several classes": ["train/a/12.png", "train/c/conflict.png"],
    "repeats another image": ["train/b/duplicate.png"],
    "nearly in a later split too": ["train/b/near leak.jpg"],
    "nearly repeats another image": ["train/c/small.jpg"],
}


def test_clean_photographs_are_one_line_and_status_0(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_command([str(clean)]) == 0
    printed = capsys.readouterr()
    counts = "48 images in 3 classes: train 36 (12 a class), test 12 (4 a class)"
    assert printed.out == f"{clean}: {counts}; no faults\n"
    assert printed.err == ""


def test_every_planted_fault_is_found_and_nothing_else(clean: Path) -> None:
    plant(clean)
    findings = findings_of(clean)
    assert names(clean, [item for item, _ in findings.unreadable]) == LEFT_OUT["unreadable"]
    assert "truncated" in findings.unreadable[0][1]
    assert leaks(clean, findings) == [
        ("train/a/leak.png", "test/a/03.png", True),
        ("train/b/near leak.jpg", "test/b/07.png", False),
    ]
    assert groups(clean, findings.conflicts) == [["train/a/12.png", "train/c/conflict.png"]]
    assert groups(clean, findings.duplicates) == [
        ["train/b/01.png", "train/b/duplicate.png"],
        ["train/c/02.png", "train/c/small.jpg"],
    ]
    assert [group.exact for group in findings.duplicates] == [True, False]
    assert findings.severe
    assert {reason: names(clean, items) for reason, items in findings.to_leave_out().items()} == LEFT_OUT
    assert not any((findings.odd_sizes, findings.modes, findings.ignored, findings.rare, findings.tiny))


@pytest.mark.parametrize(
    "name", ["truncated.png", "empty.jpg", "text.png", "leak.png", "near leak.jpg", "conflict.png", "duplicate.png"]
)
def test_each_fault_alone_is_status_1(clean: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(clean.rglob("*"))
    plant(clean)
    for path in set(clean.rglob("*")) - before:
        if path.name != name:
            path.unlink()
    assert check_command([str(clean), "--workers", "0"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("fault: ") == 1
    assert name in printed.out
    assert "--fix" in printed.err


def test_the_list_of_fix_makes_the_folder_clean(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(clean)
    listed = tmp_path / "leave-out.txt"
    assert check_command([str(clean), "--fix", str(listed), "--workers", "0"]) == 1
    assert "9 images to leave out" in capsys.readouterr().err
    lines = listed.read_text().splitlines()
    listed_paths = [line for line in lines if not line.startswith("#")]
    assert listed_paths == [path for paths in LEFT_OUT.values() for path in paths]
    assert [line for line in lines[1:] if line.startswith("#")] == [f"# {k}: {len(v)}" for k, v in LEFT_OUT.items()]

    again = findings_of(clean, exclude=listed)
    assert not again.severe
    assert again.to_leave_out() == {}
    assert again.counts["test"] == {"a": 4, "b": 4, "c": 4}
    assert check_command([str(clean), "--exclude", str(listed), "--workers", "0"]) == 0
    assert "no faults" in capsys.readouterr().out


def test_the_number_of_workers_changes_nothing(clean: Path) -> None:
    plant(clean)
    assert findings_of(clean, 0) == findings_of(clean, 1) == findings_of(clean, 2)


def test_digits_alike_are_no_copies(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_command(["--name", "digits"]) == 0
    out = capsys.readouterr().out
    assert "no faults" in out
    assert "below 32 px" in out


def test_an_exact_copy_of_a_near_copy_is_left_out_once(clean: Path) -> None:
    small = Image.open(clean / "train/c/02.png").resize((SIDE // 2, SIDE // 2))
    for name in ("small 1.png", "small 2.png"):
        small.save(clean / "train/c" / name)
    large = Image.open(clean / "test/b/07.png").resize((2 * SIDE, 2 * SIDE))
    for name in ("large 1.png", "large 2.png"):
        large.save(clean / "train/b" / name)
    findings = findings_of(clean)
    assert groups(clean, findings.groups) == [["train/c/02.png", "train/c/small 1.png", "train/c/small 2.png"]]
    assert leaks(clean, findings) == [
        ("train/b/large 1.png", "test/b/07.png", False),
        ("train/b/large 2.png", "test/b/07.png", False),
    ]


def test_what_the_test_split_repeats_stays(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(clean / "test/a/03.png", clean / "test/a/again.png")
    shutil.copy(clean / "test/b/07.png", clean / "test/c/conflict.png")
    findings = findings_of(clean)
    assert groups(clean, findings.groups) == [
        ["test/a/03.png", "test/a/again.png"],
        ["test/b/07.png", "test/c/conflict.png"],
    ]
    assert not findings.severe
    assert findings.to_leave_out() == {}
    assert check_command([str(clean), "--workers", "0"]) == 0
    assert "note: 1 image of test is there under several classes" in capsys.readouterr().out


def test_copies_are_left_out_of_a_test_split_that_was_drawn(clean: Path, tmp_path: Path) -> None:
    shutil.move(clean / "train", tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "pool")
    for path in sorted((tmp_path / "pool").rglob("*.png")):
        shutil.copy(path, path.with_name(f"again {path.name}"))
    listed = tmp_path / "leave-out.txt"
    assert check_command([str(tmp_path / "pool"), "--fix", str(listed), "--workers", "0"]) == 1
    assert len([line for line in listed.read_text().splitlines() if not line.startswith("#")]) == 36
    assert check_command([str(tmp_path / "pool"), "--exclude", str(listed), "--workers", "0"]) == 0


def test_leaks_between_all_splits(clean: Path) -> None:
    shutil.copytree(clean / "test", clean / "val")
    for path in (clean / "val").rglob("*.png"):
        Image.open(path).rotate(90).save(path)
    assert leaks(clean, findings_of(clean)) == []
    shutil.copy(clean / "val/a/03.png", clean / "train/a/in val.png")
    shutil.copy(clean / "test/a/03.png", clean / "val/a/in test.png")
    assert leaks(clean, findings_of(clean)) == [
        ("train/a/in val.png", "val/a/03.png", True),
        ("val/a/in test.png", "test/a/03.png", True),
    ]


def test_a_folder_with_val_alone_is_tested_on_it(clean: Path) -> None:
    (clean / "test").rename(clean / "val")
    shutil.copy(clean / "val/a/03.png", clean / "train/b/leak.png")
    findings = findings_of(clean)
    assert list(findings.counts) == ["train", "val"]
    assert leaks(clean, findings) == [("train/b/leak.png", "val/a/03.png", True)]


def test_many_near_copies_are_to_be_looked_at(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((clean / "train/c").iterdir())[:4]:
        Image.open(path).resize((2 * SIDE, 2 * SIDE)).save(path.with_suffix(".jpg"))
    assert check_command([str(clean), "--workers", "0"]) == 1
    assert "they may only look alike" in capsys.readouterr().out


def test_few_duplicates_are_no_fault() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (250, 8, 8, 3), dtype=np.uint8)
    images[1] = images[0]
    splits = Splits(("a",), source(images[:240]), None, source(images[240:]))
    findings = check(splits, workers=0)
    assert findings.duplicate_fraction == 1 / 240
    assert not findings.severe
    assert [item.number for item in findings.to_leave_out()["repeats another image"]] == [1]


def source(images: NDArray[np.uint8]) -> ArraySource:
    return ArraySource(images, np.zeros(len(images), np.int64), channels=3)


def test_oddities_are_notes_for_the_user_to_judge(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide, tiny = Image.open(clean / "train/a/00.png").resize((900, 90)), patches()[30].resize((5, 5))
    wide.save(clean / "train/a/00.png")
    tiny.save(clean / "train/b/tiny.png")
    patches()[1].convert("CMYK").save(clean / "train/b/01.png".replace("png", "jpg"))
    (clean / "train/b/01.png").unlink()
    (clean / "train/b/notes.txt").write_text("a text among the images")
    for path in sorted((clean / "train/c").iterdir())[1:]:
        path.unlink()
    findings = findings_of(clean)
    assert names(clean, [item for item, _, _ in findings.odd_sizes]) == ["train/a/00.png", "train/b/tiny.png"]
    assert findings.modes == {"RGB": 37, "CMYK": 1}
    assert findings.ignored == {".txt": 1}
    assert findings.rare == {"c": 1}
    assert findings.imbalance == 13
    assert check_command([str(clean), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("; no faults")
    assert "b has 13 training images, c 1" in out
    assert "900x90 px" in out


def test_json_has_everything(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(clean)
    assert check_command([str(clean), "--json", "--workers", "0"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["severe"]
    assert report["leaks"][0]["original"] == {"split": "test", "image": str(clean / "test/a/03.png"), "class": "a"}
    assert report["counts"]["test"] == {"a": 4, "b": 4, "c": 5}
    left_out = {reason: [str(clean / name) for name in files] for reason, files in LEFT_OUT.items()}
    assert report["leave_out"] == left_out


def test_long_lists_are_cut(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        (clean / f"train/a/empty {number}.png").touch()
    assert check_command([str(clean), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert "12 images cannot be read" in out
    assert out.count("no image format") == 10
    assert "… and 2 more" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "check which folder"),
        (["--name", "digits", "--fix", "list.txt"], "files, which the images of data set 'digits' are not"),
        (["IMAGES", "--fix", "missing/list.txt"], "missing/list.txt is a folder, or its own folder is not there"),
        (["IMAGES", "--fix", "list.txt", "--exclude", "other.txt"], "without --exclude"),
        (["IMAGES", "--workers", "-1"], "workers"),
    ],
)
def test_mistakes_are_refused_before_an_image_is_read(clean: Path, args: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_command([str(clean) if arg == "IMAGES" else arg for arg in args])


def test_odd_names_are_listed_as_they_are(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "leave-out.txt"
    shutil.move(clean / "test", tmp_path / "test")
    (clean / "train").rename(tmp_path / "pool")
    (tmp_path / "pool/a").rename(tmp_path / "pool/#a")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/pool/b/\xff.png")).touch()
    shutil.copy(tmp_path / "pool/#a/00.png", tmp_path / "pool/#a/again.png")
    assert check_command([str(tmp_path / "pool"), "--fix", str(listed), "--workers", "0"]) == 1
    assert b"\nb/\xff.png\n" in listed.read_bytes()
    assert "\\udcff.png" in capsys.readouterr().out
    assert check_command([str(tmp_path / "pool"), "--exclude", str(listed), "--workers", "0"]) == 0

    (tmp_path / "pool/b/broken\nname.png").touch()
    listed.unlink()
    with pytest.raises(DataError, match="line break"):
        check_command([str(tmp_path / "pool"), "--fix", str(listed), "--workers", "0"])
    assert not listed.exists()


class Unreachable(ArraySource):
    """A source that is gone."""

    def raw(self, index: int) -> NDArray[np.uint8]:
        raise DataError(f"image {index} cannot be fetched")


class Deadly(ArraySource):
    """A source whose decoder takes the process down."""

    def raw(self, index: int) -> Raw:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().raw(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_is_gone_ends_the_check(workers: int) -> None:
    images = Unreachable(np.zeros((3, 8, 8), np.uint8), np.zeros(3, np.int64), channels=1)
    with pytest.raises(DataError, match="image 0 cannot be fetched"):
        check(Splits(("a",), images, None, images), workers=workers)


def test_a_killed_worker_is_one_line() -> None:
    images = Deadly(np.zeros((3, 8, 8), np.uint8), np.zeros(3, np.int64), channels=1)
    with pytest.raises(DataError, match="was killed"):
        check(Splits(("a",), images, None, images), workers=1)
