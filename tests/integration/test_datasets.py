"""Each data set on its real path, from a small archive in the original's layout: HTTP, checksum, unpacking, loading,
training, evaluation; and what networks, disks and people do to that.
"""

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision

import convnext
from convnext.cli import main
from convnext.config import DataSettings, ModelSettings, RunSettings
from convnext.data.datasets.catalogue import DATASETS
from convnext.data.datasets.load import load_splits
from convnext.data.sources import ImageSource
from tests.support import dataset_archives as small
from tests.support.loopback import Server

Serve = Callable[[str], Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server that has a data set in small, and lets the catalogue point there."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("convnext.storage.downloads.download.__defaults__", (None, True, 1, 0.0, 5.0))
    servers: list[Server] = []

    def start(name: str) -> Server:
        entry = DATASETS[name]
        bodies = {file.name: body for file, body in zip(entry.files, small.BUILDERS[name](name), strict=True)}
        server = Server(files=bodies)
        expect(monkeypatch, name, bodies, (server.base,))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def expect(monkeypatch: pytest.MonkeyPatch, name: str, bodies: dict[str, bytes], mirrors: tuple[str, ...]) -> None:
    """Let the catalogue, and torchvision where it checks too, expect these files in place of the originals."""
    entry = DATASETS[name]
    files = tuple(
        replace(file, mirrors=mirrors, md5=hashlib.md5(bodies[file.name]).hexdigest(), size=len(bodies[file.name]))
        for file in entry.files
    )
    monkeypatch.setitem(DATASETS, name, replace(entry, files=files))
    if name.startswith("cifar"):
        kind = getattr(torchvision.datasets, name.upper())
        sums = {file: hashlib.md5(data).hexdigest() for file, data in small.cifar(name).items()}
        monkeypatch.setitem(kind.meta, "md5", sums[kind.meta["filename"]])
        for attribute in ("train_list", "test_list"):
            monkeypatch.setattr(kind, attribute, [[file, sums[file]] for file, _ in getattr(kind, attribute)])
    if name == "imagenet":
        devkit = files[2]
        monkeypatch.setitem(torchvision.datasets.imagenet.ARCHIVE_META, "devkit", (devkit.name, devkit.md5))


def train(name: str, root: Path, output: Path) -> convnext.Run:
    model = ModelSettings(name="convnext_tiny", depths=(1,), dims=(8,), patch_size=4)
    data = DataSettings(name=name, root=root, image_size=16, val_fraction=0.25, workers=0)
    return convnext.train(
        RunSettings(output=output, epochs=1, batch_size=8, trackers=(), device="cpu", model=model, data=data)
    )


def labels_match(source: ImageSource) -> bool:
    shades = (float(np.asarray(source.load(index)).mean()) for index in range(len(source)))
    return bool(np.array_equal([round(shade) // small.SHADE for shade in shades], source.targets))


def left(root: Path) -> list[str]:
    """Hidden files and archives below ``root``."""
    suffixes = (".gz", ".tgz", ".zip", ".tar")
    return [path.name for path in root.rglob("*") if path.name.startswith(".") or path.name.endswith(suffixes)]


BREEDS = tuple(DATASETS["imagewoof"].class_names.values())
FIRST_RUNS = {  # training and test images, the number of classes, and some of their names
    "mnist": (40, 20, 10, ("0", "9")),
    "fashion-mnist": (40, 20, 10, ("T-shirt/top", "Ankle boot")),
    "cifar10": (100, 20, 10, ("airplane", "truck")),
    "cifar100": (60, 20, 10, ("apple", "aquarium fish")),
    "tiny-imagenet": (24, 9, 3, ("goldfish", "crane (n02012849)", "crane (n03126707)")),
    "imagenette160": (40, 20, 10, ("tench", "English springer")),
    "imagewoof": (40, 20, 10, BREEDS),
    "food101": (24, 12, 3, ("apple pie", "baby back ribs", "waffles")),
    "caltech101": (63, 5, 3, ("Faces easy", "accordion", "yin yang")),
    "caltech256": (120, 4, 2, ("ak47", "american-flag")),
}


@pytest.mark.parametrize("name", FIRST_RUNS)
def test_a_first_run(name: str, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve(name)
    root = tmp_path / "data" / "sets"
    run = train(name, root, tmp_path / "runs")
    assert f"{DATASETS[name].title} is not in {root}: downloading it" in capfd.readouterr().err
    assert len(server.requests) == len(DATASETS[name].files)
    assert left(root) == []
    splits = load_splits(DataSettings(name=name, root=root, val_fraction=0))
    training, test, classes, names = FIRST_RUNS[name]
    assert (len(splits.train), len(splits.test), len(splits.classes)) == (training, test, classes)
    assert run.report.count == test
    assert set(names) <= set(splits.classes)
    assert labels_match(splits.train)
    assert labels_match(splits.test)
    assert splits.channels == (1 if "mnist" in name else 3)
    assert splits.test_name == ("test" if "test" in DATASETS[name].splits else "val")
    assert len(server.requests) == len(DATASETS[name].files)  # everything was there


def test_processes_that_start_together_fetch_once(serve: Serve, tmp_path: Path) -> None:
    server = serve("imagewoof160")
    loaded: list[dict[str, str]] = []

    def load() -> None:
        loaded.append(load_splits(DataSettings(name="imagewoof160", root=tmp_path, val_fraction=0)).fingerprints())

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4
    assert all(fingerprints == loaded[0] for fingerprints in loaded)
    assert server.requests == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["imagewoof2-160"]


@pytest.mark.parametrize("name", sorted({*small.BUILDERS} - {*FIRST_RUNS}))
def test_the_other_sizes(name: str, serve: Serve, tmp_path: Path) -> None:
    serve(name)
    splits = load_splits(DataSettings(name=name, root=tmp_path, val_fraction=0))
    assert len(splits.classes) == 10
    inside = load_splits(DataSettings(name=name, root=tmp_path / DATASETS[name].files[0].becomes, val_fraction=0))
    assert inside.fingerprints() == splits.fingerprints()
    moved = (tmp_path / DATASETS[name].files[0].becomes).rename(tmp_path / "elsewhere")
    again = load_splits(DataSettings(name=name, root=moved, val_fraction=0))
    assert again.fingerprints() == splits.fingerprints()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "caltech101", "tiny-imagenet"])
def test_a_damaged_download_is_refused_and_leaves_nothing(
    name: str, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(name)
    assert server.files is not None
    for file, body in server.files.items():
        server.files[file] = body[:-1] + bytes([body[-1] ^ 1])
    root = tmp_path / "new" / "data"
    assert main(["datasets", name, "--download", str(root)]) == 2
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 2
    assert err[1].startswith(f"convnext: {server.base}")
    assert "has the MD5" in err[1]
    assert not (tmp_path / "new").exists()


def test_no_server_leaves_nothing(serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    serve("food101").status = 404
    (tmp_path / "data").mkdir()
    assert main(["train", "folder", "--data.name", "food101", "--data.root", str(tmp_path / "data")]) == 2
    assert "the server answers 404" in capfd.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_an_interrupted_download_goes_on(serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve("caltech256")
    server.cuts = 100
    assert main(["datasets", "caltech256", "--download", str(tmp_path)]) == 2
    assert "the connection broke" in capfd.readouterr().err
    part = tmp_path / "caltech256" / ".256_ObjectCategories.tar.part"
    there = part.stat().st_size
    assert there > 0
    server.cuts = 0
    assert main(["datasets", "caltech256", "--download", str(tmp_path)]) == 0
    assert capfd.readouterr().out == f"{tmp_path}\n"
    assert server.requests[-1] == f"bytes={there}-"
    assert left(tmp_path) == []
    assert len(load_splits(DataSettings(name="caltech256", root=tmp_path)).classes) == 2


@pytest.mark.parametrize("name", ["cifar10", "food101", "tiny-imagenet", "caltech101"])
def test_the_folder_itself_is_a_root_too(name: str, serve: Serve, tmp_path: Path) -> None:
    serve(name)
    becomes = DATASETS[name].files[0].becomes
    root = tmp_path / Path(becomes).name  # called so, and not there yet
    first = load_splits(DataSettings(name=name, root=root, val_fraction=0))
    for folder in (root, root / becomes):
        again = load_splits(DataSettings(name=name, root=folder, val_fraction=0))
        assert again.fingerprints() == first.fingerprints()


def test_the_next_mirror_is_tried(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve("mnist")
    assert server.files is not None
    gone = server.base + "gone/"
    expect(monkeypatch, "mnist", server.files, (gone, server.base))
    assert main(["datasets", "mnist", "--download", str(tmp_path / "data")]) == 0
    assert len(server.requests) == 8
    expect(monkeypatch, "mnist", server.files, (gone, server.base + "too/"))
    assert main(["datasets", "mnist", "--download", str(tmp_path / "other")]) == 2
    err = capfd.readouterr().err
    assert gone in err
    assert server.base + "too/" in err
    assert not (tmp_path / "other").exists()


def test_an_archive_that_is_there_is_used_and_kept(
    serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve("food101")
    assert server.files is not None
    archive = tmp_path / "food-101.tar.gz"
    archive.write_bytes(server.files[archive.name][:-9])
    assert main(["datasets", "food101", "--download", str(tmp_path)]) == 2
    assert f"{archive} has the MD5" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]
    archive.write_bytes(server.files[archive.name])
    assert main(["datasets", "food101", "--download", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["food-101", archive.name]
    assert server.requests == []


def test_a_full_disk_is_noticed_before_the_download(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve("imagenette")
    assert server.files is not None
    size = len(server.files["imagenette2.tgz"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * size - 1))
    assert main(["datasets", "imagenette", "--download", str(tmp_path / "data")]) == 2
    assert "free space, or choose a folder on another disk" in capfd.readouterr().err
    assert server.requests == []
    assert not (tmp_path / "data").exists()


def test_damaged_files_of_a_set_that_is_there(serve: Serve, tmp_path: Path) -> None:
    for name, file, message in (
        ("cifar10", "cifar-10-batches-py/data_batch_3", "cifar-10-batches-py lacks files of CIFAR-10, or they are dam"),
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte", "the files of MNIST in .*raw are damaged"),
        ("food101", "food-101/meta/train.json", "food-101 is not complete"),
        ("tiny-imagenet", "tiny-imagenet-200/val/val_annotations.txt", "val_annotations.txt: No such file"),
    ):
        serve(name)
        load_splits(DataSettings(name=name, root=tmp_path, val_fraction=0))
        if name == "tiny-imagenet":
            (tmp_path / file).unlink()
        else:
            (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:100])
        with pytest.raises(convnext.UserError, match=message):
            load_splits(DataSettings(name=name, root=tmp_path))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
def test_idx_files_where_they_are(folder: str, compressed: bool, tmp_path: Path) -> None:
    location = tmp_path / folder
    location.mkdir(parents=True, exist_ok=True)
    files = small.BUILDERS["fashion-mnist"]("fashion-mnist") if compressed else small.mnist()
    for file, body in zip(DATASETS["fashion-mnist"].files, files, strict=True):
        (location / (file.name if compressed else file.name.removesuffix(".gz"))).write_bytes(body)
    before = sorted(tmp_path.rglob("*"))
    splits = load_splits(DataSettings(name="fashion-mnist", root=tmp_path, val_fraction=0))
    assert (len(splits.train), len(splits.test)) == (40, 20)
    assert labels_match(splits.test)
    assert sorted(tmp_path.rglob("*")) == before


def put_imagenet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = DATASETS["imagenet"]
    bodies = {file.name: body for file, body in zip(entry.files, small.imagenet(), strict=True)}
    expect(monkeypatch, "imagenet", bodies, ())
    for name, body in bodies.items():
        (root / name).write_bytes(body)


def test_imagenet_from_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "imagenet"
    root.mkdir()
    put_imagenet(root, monkeypatch)
    run = train("imagenet", root, tmp_path / "runs")
    assert run.test_name == "val"
    assert convnext.evaluate(run.path).top1 == run.report.top1
    splits = load_splits(DataSettings(name="imagenet", root=root, val_fraction=0))
    assert splits.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert (len(splits.train), len(splits.test)) == (24, 6)
    assert labels_match(splits.train)
    assert labels_match(splits.test)
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []
    for file in DATASETS["imagenet"].files:  # the folders alone do, too
        (root / file.name).unlink()
    again = load_splits(DataSettings(name="imagenet", root=root, val_fraction=0))
    assert again.fingerprints() == splits.fingerprints()
    assert again.classes == ("n01440764", "n02012849", "n03126707")
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n")
    assert load_splits(DataSettings(name="imagenet", root=root)).classes == splits.classes


def test_imagenet_needs_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["datasets", "imagenet", "--download"],
        ["train", "folder", "--data.name", "imagenet", "--data.root"],
    ):
        assert main([*command, str(tmp_path / "none")]) == 2
        err = capfd.readouterr().err
        assert "register at https://image-net.org" in err
        assert "ILSVRC2012_img_train.tar" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()
    put_imagenet(tmp_path, monkeypatch)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert main(["datasets", "imagenet", "--download", str(tmp_path)]) == 2
    assert "(ILSVRC2012_devkit_t12.tar.gz missing)" in capfd.readouterr().err
    put_imagenet(tmp_path, monkeypatch)
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"another file")
    assert main(["datasets", "imagenet", "--download", str(tmp_path)]) == 2
    assert "it is damaged, incomplete or another file" in capfd.readouterr().err
    assert not (tmp_path / "train").exists()


def test_imagenets_thousand_classes_have_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            (folder / "0.JPEG").touch()
    splits = load_splits(DataSettings(name="imagenet", root=tmp_path, val_fraction=0))
    assert splits.classes[:2] == ("tench", "goldfish")
    assert len(set(splits.classes)) == 1000
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(convnext.UserError, match="val has no class folders"):
        load_splits(DataSettings(name="imagenet", root=tmp_path))
