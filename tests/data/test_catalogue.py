"""What the catalogue says, what it draws where a set has no split, and what a user leaves out."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from torchvision.datasets.imagenet import ARCHIVE_META

import convnext
from convnext.cli import main
from convnext.config import DataSettings
from convnext.data.datasets.catalogue import DATASETS
from convnext.data.datasets.entries import register_dataset
from convnext.data.datasets.listing import human_names
from convnext.data.datasets.load import export_folder, load_splits, read_splits
from convnext.data.sources import FileSource
from convnext.errors import DataError
from tests.support import dataset_archives as small


def test_every_set_has_its_facts() -> None:
    for name, entry in DATASETS.items():
        assert all((entry.title, entry.summary, entry.images, entry.licence, entry.home, entry.reported)), name
        assert len(entry.mean) == len(entry.std)
        assert not entry.class_names or len(entry.class_names) == entry.classes
        assert len({*entry.class_names.values()}) == len(entry.class_names)
        assert not entry.splits or entry.reported.partition(":")[0] in entry.splits
        for file in entry.files:
            assert len(file.md5) == 32
            assert all(url.startswith("http") and url.endswith("/") for url in file.mirrors)
            assert file.mirrors or entry.instructions


def test_a_data_set_is_added_with_one_file(tmp_path: Path) -> None:
    package = shutil.copytree(Path(convnext.__file__).parent, tmp_path / "convnext")
    (package / "data" / "datasets" / "catalogue" / "halves.py").write_text(
        "from convnext.data.datasets.entries import Dataset, register_dataset\n"
        "from convnext.data.datasets.listing import list_images\n"
        "from convnext.data.splits import make_splits, root_of\n"
        "@register_dataset('halves', Dataset('Halves', 'left and right', 'any', 'mine', 'here', 'test: held out'))\n"
        "def halves(entry, settings):\n"
        "    source = list_images(root_of(settings), ('left', 'right'))\n"
        "    return make_splits(('left', 'right'), {'train': source}, settings.test_fraction)\n"
    )
    unpacked({f"{name}/{n}.jpg": small.jpeg(n) for name in ("left", "right") for n in range(10)}, tmp_path / "images")

    def run(*args: str) -> str:
        return subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "left and right" in run("-m", "convnext", "datasets")
    assert run("-m", "convnext", "datasets", "halves").startswith("halves: Halves: left and right\n")
    code = (
        "from convnext.config import DataSettings; from convnext.data.datasets.load import load_splits;"
        "splits = load_splits(DataSettings(name='halves', root='images'));"
        "print(splits.classes, len(splits.train), len(splits.val), len(splits.test))"
    )
    assert run("-c", code) == "('left', 'right') 14 2 4\n"


def test_two_data_sets_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="two data sets are called 'digits'"):
        register_dataset("digits", DATASETS["digits"])


def test_addresses_and_checksums_are_torchvisions() -> None:
    sets = torchvision.datasets
    addresses = {
        (mirror + file.name, file.md5) for entry in DATASETS.values() for file in entry.files for mirror in file.mirrors
    }
    expected = {(kind.url, kind.tgz_md5) for kind in (sets.CIFAR10, sets.CIFAR100)}
    for kind in (sets.MNIST, sets.FashionMNIST):
        expected |= {(mirror + name, md5) for mirror in kind.mirrors for name, md5 in kind.resources}
    expected |= {*sets.Imagenette._ARCHIVES.values(), (sets.Food101._URL, sets.Food101._MD5)}
    assert expected <= addresses
    assert {(file.name, file.md5) for file in DATASETS["imagenet"].files} == {*ARCHIVE_META.values()}
    names = {wnid: names[0] for wnid, names in sets.Imagenette._WNID_TO_CLASS.items()}
    assert DATASETS["imagenette"].class_names == names
    assert tuple(DATASETS["fashion-mnist"].class_names) == tuple(sets.FashionMNIST.classes)


def test_the_list_is_quick_and_complete(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from convnext.cli import main; main(['datasets']); main(['datasets', 'food101']);"
        "sys.exit(str({'torch', 'torchvision', 'sklearn', 'numpy'} & sys.modules.keys() or None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "None"
    assert all(name in done.stdout for name in [*DATASETS, "hf:", "wds:", "CC BY 4.0"])
    for name in [*DATASETS, "hf:owner/name", "wds:shards-{00..99}.tar"]:
        assert main(["datasets", name]) == 0
    out = capfd.readouterr().out
    assert (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, 170.5 MB, MD5 c58f30108f718f92721af3b95e74349a" in out
    )
    assert "images: 1,281,167 train, 50,000 val; colour" in out
    assert "classes: 10: Shih-Tzu, Rhodesian ridgeback, beagle" in out
    assert "how to get it: register at" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("imagenete", "no data set is called 'imagenete': did you mean imagenette or imagenet"),
        ("--download there", "which data set? convnext datasets NAME --to-folder DIR, or NAME --download DIR"),
        ("hf:a/b --download there", "hf:a/b is fetched at its first use"),
        ("digits --download there", "there is nothing to download for 'digits'"),
        ("mini-imagenet --download there", "it has no official download; put images/"),
        ("mnist --to-folder there", "data set 'mnist' needs its folder: give --data.root DIR"),
        ("nothing --to-folder there", "no data set is called 'nothing'"),
    ],
)
def test_mistakes_are_one_line(
    args: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["datasets", *args.split()]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def unpacked(files: dict[str, bytes], root: Path) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def labels(source: object) -> set[str]:
    assert isinstance(source, FileSource)
    return {source.image_name(index) for index in range(len(source))}


def test_caltech_is_drawn_by_class_and_always_the_same(tmp_path: Path) -> None:
    counts = {"accordion": 40, "yin_yang": 31, "rare": 5, "pair": 2}
    root = tmp_path / "101_ObjectCategories"
    files = {f"{name}/image_{i:04d}.jpg": small.jpeg(0) for name, count in counts.items() for i in range(count)}
    unpacked(files | {"BACKGROUND_Google/image_0001.jpg": b""}, root)
    for given in (tmp_path, root):
        splits = load_splits(DataSettings(name="caltech101", root=given, val_fraction=0))
        assert splits.classes == ("accordion", "pair", "rare", "yin yang")
        assert np.bincount(splits.train.targets).tolist() == [30, 1, 4, 30]
        assert np.bincount(splits.test.targets).tolist() == [10, 1, 1, 1]
        assert not labels(splits.train) & labels(splits.test)
        again = load_splits(DataSettings(name="caltech101", root=given, val_fraction=0))
        assert again.fingerprints() == splits.fingerprints()
    (root / "pair" / "image_0000.jpg").unlink()
    with pytest.raises(DataError, match=r"pair has one image only"):
        load_splits(DataSettings(name="caltech101", root=root))


def test_tiny_imagenet_may_have_some_of_its_classes(tmp_path: Path) -> None:
    root = unpacked(small.tiny_imagenet(), tmp_path) / "tiny-imagenet-200"
    whole = load_splits(DataSettings(name="tiny-imagenet", root=tmp_path, val_fraction=0))
    assert load_splits(DataSettings(name="tiny-imagenet", root=root, val_fraction=0)).classes == whole.classes
    renamed = root.rename(tmp_path / "some")
    (renamed / "wnids.txt").write_text("n01443537\nn02012849\nn00000001\n")
    splits = load_splits(DataSettings(name="tiny-imagenet", root=renamed, val_fraction=0))
    assert splits.classes == ("goldfish", "crane")
    assert (len(splits.train), len(splits.test), splits.test_name) == (16, 6, "val")
    (renamed / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09999999\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"names no image of the classes"):
        load_splits(DataSettings(name="tiny-imagenet", root=renamed))
    (renamed / "wnids.txt").write_text("n01443537\n")
    with pytest.raises(DataError, match=r"has 1 of the classes that its wnids.txt lists"):
        load_splits(DataSettings(name="tiny-imagenet", root=renamed))


def test_mini_imagenets_lists_are_pooled(tmp_path: Path) -> None:
    lists = {"train": ["n01", "n02"], "val": ["n03"], "test": ["n04"]}
    for name, wnids in lists.items():
        rows = [(f"{wnid}{number:08d}.jpg", wnid) for wnid in wnids for number in range(10)]
        lines = ["filename,label", *(",".join(row) for row in rows)]
        unpacked({f"{name}.csv": "\n".join(lines).encode()}, tmp_path)
        unpacked({f"images/{name}": small.jpeg(int(wnid[1:])) for name, wnid in rows}, tmp_path)
    (tmp_path / "words.txt").write_text("n01\thouse finch, linnet\nn02\trobin\nn03\trobin\n")
    splits = load_splits(DataSettings(name="mini-imagenet", root=tmp_path, val_fraction=0))
    assert splits.classes == ("house finch", "robin (n02)", "robin (n03)", "n04")
    assert Counter(splits.test.targets.tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert all(
        round(float(np.asarray(splits.test.load(i)).mean())) // small.SHADE == splits.test.targets[i] + 1
        for i in range(8)
    )
    (tmp_path / "val.csv").write_text("file,class\nx.jpg,n03\n")
    with pytest.raises(DataError, match=r"val.csv lacks values: expected the columns filename and label"):
        load_splits(DataSettings(name="mini-imagenet", root=tmp_path))


def test_mini_imagenet_as_class_folders(small_folder: Path, tmp_path: Path) -> None:
    splits = load_splits(DataSettings(name="mini-imagenet", root=small_folder))
    assert splits.fingerprints() == load_splits(DataSettings(root=small_folder)).fingerprints()
    with pytest.raises(DataError, match=r"mini-ImageNet is not in .*none: it has no official download"):
        load_splits(DataSettings(name="mini-imagenet", root=tmp_path / "none"))


def test_other_folders_are_not_taken_for_a_set(small_folder: Path) -> None:
    folder = small_folder.rename(small_folder.with_name("imagenette2-160"))
    with pytest.raises(DataError, match=r"train is not that of Imagenette \(160 px\): it has 0, 1, 2"):
        load_splits(DataSettings(name="imagenette160", root=folder.parent))


def test_names_for_people_differ() -> None:
    names = {"n1": "crane", "n2": "crane", "n3": "maillot"}
    assert human_names(["n1", "n2", "n3", "n4"], names) == ("crane (n1)", "crane (n2)", "maillot", "n4")


def exclude(root: Path, *lines: str) -> DataSettings:
    (root / "exclude.txt").write_text("\n".join(lines))
    return DataSettings(root=root, exclude=root / "exclude.txt")


def test_excluded_images_are_in_no_split(small_folder: Path) -> None:
    black = small_folder / "train" / "0" / "black picture.png"
    Image.new("L", (8, 8)).save(black)
    test = next((small_folder / "test" / "2").iterdir())
    lines = ["# found by hand", "", "train/0/black picture.png", f"./test//2/{test.name}", str(test)]
    settings = exclude(small_folder, *lines)
    splits = load_splits(settings)
    assert splits.val is not None
    everywhere = labels(splits.train) | labels(splits.val) | labels(splits.test)
    assert len(everywhere) == 60 + 15 - 1
    assert not everywhere & {str(black), str(test)}
    assert splits.notes == ()
    black.unlink()
    without = load_splits(DataSettings(root=small_folder))
    assert splits.mean == without.mean  # measured without it
    assert splits.fingerprints()["train"] == without.fingerprints()["train"]
    assert splits.fingerprints()["test"] != without.fingerprints()["test"]
    assert load_splits(settings).notes == (f"{settings.exclude}: 1 of 2 paths name no image",)


def test_excluding_keeps_val_and_test_one(small_folder: Path) -> None:
    (small_folder / "test").rename(small_folder / "val")
    image = next((small_folder / "val" / "1").iterdir())
    splits = load_splits(exclude(small_folder, str(image.relative_to(small_folder))))
    assert splits.val is splits.test
    assert len(splits.test) == 14


def test_what_cannot_be_excluded(small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.exclude: cannot read .*none.txt: No such file"):
        load_splits(DataSettings(root=small_folder, exclude=tmp_path / "none.txt"))
    settings = exclude(small_folder, *(f"train/1/{path.name}" for path in (small_folder / "train" / "1").iterdir()))
    with pytest.raises(DataError, match=r"exclude.txt leaves no training image of class '1'"):
        load_splits(settings)
    with pytest.raises(DataError, match=r"data.exclude names files"):
        load_splits(DataSettings(name="digits", exclude=settings.exclude))


def test_a_set_as_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for file, body in zip(DATASETS["fashion-mnist"].files, small.mnist(), strict=True):
        (tmp_path / file.name.removesuffix(".gz")).write_bytes(body)
    folder = tmp_path / "folder"
    command = ["datasets", "fashion-mnist", "--data.root", str(tmp_path), "--to-folder", str(folder)]
    assert main(command) == 0
    assert capfd.readouterr().out == f"{folder}\n"
    splits = load_splits(DataSettings(root=folder, val_fraction=0))
    assert "T-shirt-top" in splits.classes  # a slash would make two folders
    assert (len(splits.classes), len(splits.train), len(splits.test)) == (10, 40, 20)
    assert main(command) == 2
    assert "exists already: choose a new folder" in capfd.readouterr().err


@pytest.mark.parametrize("own_test", [False, True])
def test_a_folder_with_val_as_a_folder(small_folder: Path, tmp_path: Path, own_test: bool) -> None:
    (small_folder / "test").rename(small_folder / "val")
    if own_test:
        shutil.copytree(small_folder / "train", small_folder / "test")
    splits = read_splits(DataSettings(root=small_folder))
    export_folder(splits, tmp_path / "exported")
    counts = {name: len(list((tmp_path / "exported" / name).rglob("*.png"))) for name in ("train", "test")}
    assert counts == ({"train": 75, "test": 60} if own_test else {"train": 60, "test": 15})
