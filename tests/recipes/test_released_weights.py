"""Recipe ``folder`` with few photographs: released weights where they can be had, and a clear line where not."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convnext
from convnext import recipes
from convnext.cli import main
from convnext.config import RunSettings
from convnext.storage.downloads import DownloadError, check_reachable, offline
from convnext.weights import catalogue
from tests.support.loopback import NAME, Server

TAG = "in22k_ft_in1k"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of ten images of 120 px."""
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 255, (120, 140, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.jpg")
    return tmp_path / "images"


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A file as the authors released convnext_tiny's, in half precision."""
    file = BytesIO()
    torch.save({"model": convnext.create_model("convnext_tiny").half().state_dict()}, file)
    return file.getvalue()


@pytest.fixture
def server(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The released weights, as far as the recipe knows, and an empty cache."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("convnext.storage.downloads.check_reachable.__defaults__", (60.0,))
    with Server(weights) as server:
        released = replace(catalogue.find("convnext_tiny", TAG), url=server.url)
        monkeypatch.setitem(catalogue.WEIGHTS["convnext_tiny"], TAG, released)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where nobody answers, as that of the weights."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as port:
        url = f"http://127.0.0.1:{port.getsockname()[1]}/tiny.pth"
    monkeypatch.setitem(catalogue.WEIGHTS["convnext_tiny"], TAG, replace(catalogue.find("convnext_tiny", TAG), url=url))


def choose(root: Path, **changes: Any) -> tuple[RunSettings, str]:
    given = {"data.root": root} | changes
    settings, notes = recipes.complete(recipes.get("folder").settings.replace(**given), recipes.given_names(given))
    assert recipes.complete(settings, recipes.given_names(given))[0] == settings
    return settings, next(note for note in notes if note.startswith("  model.weights "))


def test_few_photographs_start_from_released_weights(server: Server, photographs: Path) -> None:
    settings, note = choose(photographs)
    assert (settings.model.name, settings.model.weights, settings.data.image_size) == ("convnext_tiny", TAG, 224)
    assert settings.epochs <= 30
    assert settings.optimizer.lr == 2e-4
    assert note == (
        f"  model.weights {TAG}: few images learn more from trained weights (convnext_tiny, 114 MB, licence MIT); none "
        "for random ones"
    )
    assert len(server.requests) == 1
    server.status = 404
    assert choose(photographs)[0] == settings  # from the cache


@pytest.mark.usefixtures("closed")
def test_no_network_means_from_scratch_and_one_line(photographs: Path) -> None:
    settings, note = choose(photographs)
    assert settings.model.weights is None
    assert note.startswith(
        "  model.weights none: trained from scratch, for in22k_ft_in1k (convnext_tiny, 114 MB, licence"
    )
    assert note.endswith("cannot be had: cannot reach 127.0.0.1: Connection refused")


@pytest.mark.parametrize("fault", ["404", "cut", "page"])
def test_a_failed_download_means_from_scratch(server: Server, photographs: Path, fault: str) -> None:
    if fault == "404":
        server.status = 404
    elif fault == "cut":
        server.cuts, server.ranges, server.body = 100, False, server.body[:1000]
    else:
        server.body = b"<html>log in first</html>"
    settings, note = choose(photographs)
    assert settings.model.weights is None
    assert "cannot be had: cannot " in note
    assert "\n" not in note


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/tiny.pth"
        with pytest.raises(DownloadError, match=r"cannot reach 127\.0\.0\.1: (no answer in 0\.2 s|.*timed out)"):
            check_reachable(url, 0.2)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model.name": "resnet50"}, "of resnet50 none are released under a licence that permits any use"),
        ({"model.name": "convnextv2_tiny"}, "of convnextv2_tiny none are released"),
        ({"model.dims": (8, 16, 24, 32)}, "no other architecture than their own, and model.dims is given"),
        ({"data.image_size": 64}, "released ones are for colour images of more than 100 px"),
    ],
)
def test_what_the_user_sets_may_exclude_them(photographs: Path, changes: dict[str, Any], reason: str) -> None:
    settings, note = choose(photographs, **changes)
    assert settings.model.weights is None
    assert reason in note


@pytest.mark.usefixtures("closed")
def test_none_turns_it_off(photographs: Path) -> None:
    given = {"data.root": photographs, "model.weights": "none"}
    settings, notes = recipes.complete(recipes.get("folder").settings.replace(**given), recipes.given_names(given))
    assert settings.model.weights is None
    assert not any("model.weights" in note for note in notes)
    assert settings == choose(photographs)[0]  # what it comes to without a network


def test_a_dry_run_fetches_nothing_and_says_what_would_be(server: Server, photographs: Path) -> None:
    with offline():
        settings, note = choose(photographs)
    assert settings.model.weights == TAG
    assert "would be downloaded" in note
    assert server.requests == []


def test_a_run_goes_on_with_what_it_began_with(
    server: Server, photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["train", "folder", "--data.root", str(photographs), "--output", str(tmp_path / "runs"), "--epochs", "1"]
    args += ["--data.workers", "0", "--data.image-size", "128", "--batch-size", "8", "--trackers"]
    server.status = 404
    assert main(args) == 0
    assert "trained from scratch" in capfd.readouterr().err
    server.status = 200
    assert main([*args, "--resume"]) == 0
    assert "in22k" not in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["folder"]
    assert RunSettings.model_validate_json((tmp_path / "runs/folder/settings.json").read_text()).model.weights is None


def test_auto_is_for_recipe_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--model.weights", "auto", "--output", str(tmp_path)]) == 2
    assert "model.weights auto is for recipe folder" in capfd.readouterr().err


CHOICE = f"""
import sys
from dataclasses import replace
from convnext import recipe
from convnext.storage.downloads import check_reachable
from convnext.weights.catalogue import WEIGHTS

check_reachable.__defaults__ = (60.0,)
choices = []
for url in sys.argv[2:]:
    WEIGHTS["convnext_tiny"]["{TAG}"] = replace(WEIGHTS["convnext_tiny"]["{TAG}"], url=url)
    choices.append(recipe("folder", **{{"data.root": sys.argv[1]}}).model.weights)
sys.stdout.write(f"{{choices}}\\n")  # at once, as print does not write
"""


def test_of_several_processes_one_downloads_and_all_agree(server: Server, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "choice.py").write_text(CHOICE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    server.files = {f"convnext/{NAME}": server.body}
    words = [str(tmp_path / "choice.py"), str(photographs), f"{server.base}missing.pth", server.url]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == [str([None, TAG])] * 2, done.stderr
    assert len(server.requests) == 2  # one for each address
