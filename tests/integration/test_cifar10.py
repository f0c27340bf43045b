"""CIFAR-10 through its real path, from a small archive in the original's layout: download, checksum, training."""

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from convnext.cli import main
from convnext.config import DataSettings
from convnext.data.catalog import load_splits
from tests.loopback import Server

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An archive of 5 x 40 training and 20 test images, each class a shade of its own."""
    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        labels = list(range(10)) * (2 if name == "test_batch" else 4)
        shades = np.array(labels)[:, None] * 25 + rng.integers(0, 10, (len(labels), 3072))
        files[name] = pickle.dumps({"data": shades.astype(np.uint8), "labels": labels})
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    server = Server(archive.getvalue())
    monkeypatch.setattr(CIFAR10, "url", server.url)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(server.body).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )
    monkeypatch.setenv("no_proxy", "*")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_downloads_once_and_trains(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    args = ["train", "cifar10", "--data.root", str(root), "--output", str(tmp_path / "runs"), "--epochs", "1"]
    args += ["--model.depths", "1", "1", "--model.dims", "8", "16", "--batch-size", "20", "--data.val-fraction", "0.1"]
    assert main(args) == 0
    requests = len(server.requests)
    assert requests
    assert "on 20 test images" in capfd.readouterr().out
    splits = load_splits(DataSettings(name="cifar10", root=root, val_fraction=0.1))
    assert (len(splits.train), len(splits.val or []), len(splits.test)) == (180, 20, 20)
    assert splits.classes == tuple(CLASSES)
    assert splits.test.load(3).getextrema()[0][0] // 25 == splits.test.targets[3]  # type: ignore[index]
    assert len(server.requests) == requests
    assert main(["evaluate", str(tmp_path / "runs" / "cifar10"), "--json"]) == 0


def test_failed_downloads_leave_nothing(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.status = 404
    root = tmp_path / "data"
    assert main(["train", "cifar10", "--data.root", str(root)]) == 2
    server.status, server.body = 200, server.body[:-1] + b"x"
    assert main(["train", "cifar10", "--data.root", str(root)]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("convnext: ")]
    assert len(errors) == 2
    assert all("cannot be downloaded" in line for line in errors)
    assert not root.exists()
