"""Released weights: fetched whole or not at all, opened without running anything, and fitted to other images."""

import argparse
import hashlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convnext import create_model
from convnext.config import ModelSettings
from convnext.errors import CheckpointError, SettingsError, UserError
from convnext.models.variants import VARIANTS
from convnext.storage.downloads import DownloadError, cache_folder, download
from convnext.weights import released as weights
from convnext.weights.catalogue import WEIGHTS, Weights, find
from convnext.weights.files import read_convnext
from convnext.weights.loading import start_from
from convnext.weights.released import adapt_input_channels, fetch
from tests.support.loopback import NAME, Server


def small_model(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    return create_model("convnext_tiny", num_classes, depths=(1, 1), dims=(8, 16), in_channels=in_channels).eval()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """What the authors' files hold: the state under ``model``."""
    torch.manual_seed(0)
    file = BytesIO()
    torch.save({"model": small_model().state_dict()}, file)
    return file.getvalue()


@pytest.fixture
def server(checkpoint: bytes) -> Iterator[Server]:
    with Server(checkpoint) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stalled.set()
        server.shutdown()
        thread.join()


def get(server: Server, folder: Path, sha256: str | None = None) -> Path:
    return download(server.url, folder, sha256, pause=0, timeout=10)


def one_line(call: Callable[[], object], kind: type[UserError] = DownloadError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = 1
    path = get(server, tmp_path, hashlib.sha256(server.body).hexdigest())
    assert path.read_bytes() == server.body
    assert server.requests == [None, f"bytes={len(server.body) // 2}-"]
    assert files(tmp_path) == [NAME]
    small_model().load_state_dict(read_convnext(path).tensors, strict=True)


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path) == get(server, tmp_path)
    assert server.requests == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_without_ranges_or_versions_starts_again(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.cuts, server.ranges, server.tag = 1, ranges, '"one"' if not ranges else ""
    assert get(server, tmp_path).read_bytes() == server.body
    assert len(server.requests) == 2


def start_download(server: Server, folder: Path) -> "subprocess.Popen[bytes]":
    code = (
        "import sys, pathlib; from convnext.storage.downloads import download as d; d(sys.argv[1], pathlib.Path('.'))"
    )
    return subprocess.Popen([sys.executable, "-c", code, server.url], cwd=folder, env={**os.environ, "no_proxy": "*"})


def kill_halfway(server: Server, folder: Path) -> None:
    """Leave what a process leaves that was killed with half of the file."""
    server.stalled.clear()
    part = folder / f".{NAME}.part"
    with start_download(server, folder) as process:
        deadline = time.monotonic() + 20
        while not part.exists() or part.stat().st_size == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    server.stalled.set()
    assert not (folder / NAME).exists()


def test_a_killed_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server.body *= 100  # beyond a read's block, so that the first half reaches the disk
    kill_halfway(server, tmp_path)
    had = (tmp_path / f".{NAME}.part").stat().st_size
    assert get(server, tmp_path).read_bytes() == server.body
    assert server.requests == [None, f"bytes={had}-"]
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize("if_range", [True, False])
def test_two_versions_are_never_joined(server: Server, tmp_path: Path, if_range: bool) -> None:
    server.body *= 100
    kill_halfway(server, tmp_path)
    server.body, server.tag, server.if_range = bytes(reversed(server.body)), '"two"', if_range
    assert get(server, tmp_path).read_bytes() == server.body


def test_two_processes_and_two_threads_at_once(server: Server, tmp_path: Path) -> None:
    server.stalled.clear()
    processes = [start_download(server, tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=get, args=(server, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # all but one wait by now; were they late, they would find the file
    server.stalled.set()
    assert [process.wait(20) for process in processes] == [0, 0]
    for thread in threads:
        thread.join(20)
    assert (tmp_path / NAME).read_bytes() == server.body
    assert server.requests == [None]
    assert files(tmp_path) == [NAME]


def test_another_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    right = hashlib.sha256(server.body).hexdigest()
    wrong = "0" * 8
    assert f"SHA-256 {right[:8]}, not {wrong}" in one_line(lambda: get(server, tmp_path, wrong))
    assert files(tmp_path) == []
    assert get(server, tmp_path, right[:8].upper()).read_bytes() == server.body


def test_failures_are_one_line_and_leave_nothing(server: Server, tmp_path: Path) -> None:
    server.status = 404
    message = one_line(lambda: get(server, tmp_path))
    assert server.url in message
    assert "404 Not Found" in message
    assert len(server.requests) == 1  # asking again does not help
    server.status = 503
    assert "503" in one_line(lambda: get(server, tmp_path))
    server.status, server.cuts, server.ranges = 200, 1000, False
    message = one_line(lambda: get(server, tmp_path))
    assert f"broke after {len(server.body) // 2} of {len(server.body)} bytes, 5 times in a row" in message
    assert files(tmp_path) == []


def test_no_server_and_no_such_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"
    assert "Connection refused" in one_line(lambda: download(url, tmp_path, pause=0))

    unresolved = Mock(side_effect=socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    message = one_line(lambda: download("https://weights.invalid/a.pth", tmp_path, pause=1000))
    assert "cannot reach weights.invalid: Name or service not known" in message
    assert files(tmp_path) == []
    for url in ("file:///etc/hosts", "https://weights.invalid/", "a.pth"):
        assert "give a URL" in one_line(lambda url=url: download(url, tmp_path))  # type: ignore[misc]


def test_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: argparse.Namespace(free=1000))
        assert "free space" in one_line(lambda: get(server, tmp_path))
    assert files(tmp_path) == []
    (tmp_path / "file").touch()
    assert "Not a directory" in one_line(lambda: get(server, tmp_path / "file" / "folder"))


def test_a_disk_that_fills_up_while_writing(server: Server, tmp_path: Path) -> None:
    # A real limit on the size of files, in a process of its own.
    code = (
        "import resource, signal, sys; from pathlib import Path; from convnext.storage.downloads import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: download(sys.argv[1], Path(sys.argv[2]))\n"
        "except DownloadError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, server.url, tmp_path], env={**os.environ, "no_proxy": "*"}, capture_output=True
    )
    assert b"cannot write to" in done.stdout
    assert b"File too large" in done.stdout
    assert files(tmp_path) == []


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("CONVNEXT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/me/.cache/convnext")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/convnext")
    monkeypatch.setenv("CONVNEXT_CACHE", "~/own")
    assert cache_folder() == Path("/home/me/own")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4, None])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, protocol: int | None) -> None:
    marker, path = tmp_path / "MARKER", tmp_path / "evil.pth"
    content = {"model": small_model().state_dict(), "args": Evil(marker)}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"args": Evil(marker)}, protocol))
    message = one_line(lambda: read_convnext(path), CheckpointError)
    assert str(path) in message
    if protocol is None:
        assert "system" in message
    assert not marker.exists()
    if protocol is not None:  # the file is a bomb indeed
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_other_files_are_refused_in_one_line(tmp_path: Path, checkpoint: bytes) -> None:
    contents = {
        "empty": b"",
        "text": b"hello\nworld\n",
        "page": b"<html></html>",
        "half": checkpoint[: len(checkpoint) // 2],
    }
    for name, content in contents.items():
        for suffix in (".pth", ".safetensors"):
            path = tmp_path / (name + suffix)
            path.write_bytes(content)
            assert f"cannot read {path}" in one_line(lambda path=path: read_convnext(path), CheckpointError)  # type: ignore[misc]
    assert "not there" in one_line(lambda: read_convnext(tmp_path / "none.pth"), CheckpointError)
    assert "cannot read" in one_line(lambda: read_convnext(tmp_path), CheckpointError)
    path = tmp_path / "other.pth"
    for unusable in (nn.Linear(2, 2), [torch.ones(1)], {"model": {"a": 1}}, {}):
        torch.save(unusable, path)
        assert str(path) in one_line(lambda: read_convnext(path), CheckpointError)


def test_layouts_of_others(tmp_path: Path) -> None:
    state = small_model().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.ckpt")
    torch.save({"model": state, "args": argparse.Namespace(lr=4e-3)}, tmp_path / "d.pth")
    for path in tmp_path.iterdir():
        tensors = read_convnext(path).tensors
        assert tensors.keys() == state.keys()
        assert all(torch.equal(tensors[key], state[key]) for key in state)


def test_catalogue() -> None:
    entries = [(name, tag, entry) for name, tags in WEIGHTS.items() for tag, entry in tags.items()]
    assert {name for name, _, _ in entries} <= VARIANTS.keys()
    assert len({entry.url for _, _, entry in entries}) == len({Path(e.url).name for _, _, e in entries}) == len(entries)
    for name, tag, entry in entries:
        assert entry.url.startswith("https://dl.fbaipublicfiles.com/convnext/convnext")
        assert name.rpartition("_")[2] in entry.url
        assert f"_{entry.image_size}" in entry.url
        assert entry.image_size == (int(tag[-3:]) if tag[-3:].isdigit() else 224)
        assert (entry.classes, entry.top1 is None) == ((21841, True) if tag == "in22k" else (1000, False))
        assert ("22k" in tag) == ("22k" in entry.url)
        assert entry.licence == ("CC-BY-NC-4.0" if "v2" in name else "MIT")
        assert find(name, tag) is entry
    assert find("convnext_base", "in1k").center_crop == 0.875
    assert find("convnext_base", "in1k_384").center_crop == 1.0


def test_unknown_names_get_a_hint() -> None:
    assert "did you mean convnext_tiny" in one_line(lambda: find("convnext_tinny", "in1k"), SettingsError)
    assert "did you mean in22k" in one_line(lambda: find("convnext_xlarge", "in21k"), SettingsError)


def test_imagenet_classes() -> None:
    names = weights.imagenet_classes()
    assert len(names) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")


@pytest.fixture
def released(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setitem(WEIGHTS, "small", {"in1k": Weights(server.url, 1000, 224, 1.0, "MIT")})
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path))
    return server


def start(model: nn.Module, num_classes: int = 1000, in_channels: int = 3) -> str | None:
    return start_from(model, ModelSettings(name="small", weights="in1k", in_channels=in_channels), num_classes)


@pytest.mark.usefixtures("released")
def test_a_released_model_is_itself(checkpoint: bytes, tmp_path: Path) -> None:
    model = small_model()
    assert start(model) is None
    expected = torch.load(BytesIO(checkpoint), weights_only=True)["model"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert fetch("small", "in1k").parent == tmp_path / "weights"


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("num_classes", [10, 0])
def test_another_classifier(checkpoint: bytes, num_classes: int) -> None:
    model = small_model(num_classes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "1000 classes is left out" in (start(model, num_classes) or "")
    expected = torch.load(BytesIO(checkpoint), weights_only=True)["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("head.") else expected[name])


@pytest.mark.usefixtures("released")
def test_other_channels_see_what_colour_saw() -> None:
    colour = small_model()
    start(colour)
    torch.manual_seed(1)
    grey = torch.randn(2, 1, 32, 32)
    expected = colour(grey.expand(-1, 3, -1, -1))
    assert expected.std() > 0.05  # the comparison means something
    for channels in (1, 6):
        model = small_model(in_channels=channels)
        start(model, in_channels=channels)
        torch.testing.assert_close(model(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)
    key, state = "downsample_layers.0.0.weight", colour.state_dict()
    four = adapt_input_channels(state, 4)[key]
    assert torch.equal(four, state[key][:, [0, 1, 2, 0]] * 0.75)
    assert state[key].shape[1] == 3  # what was given stays as it was
    one_line(lambda: adapt_input_channels({}, 1), CheckpointError)


def test_the_authors_isotropic_names(released: Server) -> None:
    """Their isotropic models have ``stem`` and ``blocks`` in place of stages."""
    ours = create_model("convnext_isotropic_small", 1000, depths=(2,), dims=(8,))
    file = BytesIO()
    names = {"downsample_layers.0.0.": "stem.", "stages.0.": "blocks."}
    theirs = {name: tensor + 1 for name, tensor in ours.state_dict().items()}
    for new, old in names.items():
        theirs = {key.replace(new, old): value for key, value in theirs.items()}
    torch.save({"model": theirs}, file)
    released.body = file.getvalue()
    assert start(ours) is None
    assert torch.equal(ours.state_dict()["stages.0.1.dwconv.bias"], theirs["blocks.1.dwconv.bias"])
