"""Weights from outside, as a user meets them: download, predict, fine-tune, convert, and files that lie."""

import json
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file

import convnext
from convnext.cli import main
from convnext.storage.files import digest
from convnext.weights import catalogue
from convnext.weights import released as released_weights
from tests.support.loopback import Server

NAME, TAG = "convnextv2_atto", "fcmae_ft_in1k"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return convnext.create_model(NAME).eval()


@pytest.fixture
def server(model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The released atto, as far as the command knows."""
    file = BytesIO()
    torch.save({"model": model.state_dict()}, file)
    server = Server(file.getvalue())
    released = replace(catalogue.find(NAME, TAG), url=server.url)
    monkeypatch.setitem(catalogue.WEIGHTS, NAME, {TAG: released})
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    path = tmp_path / "tench.jpg"
    Image.fromarray(noise).resize((300, 260), Image.Resampling.BICUBIC).save(path)
    return path


def test_predict_with_released_weights(
    server: Server, model: torch.nn.Module, picture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.cuts = 1  # the first connection breaks off halfway
    assert main(["predict", f"{NAME}:{TAG}", str(picture), "--json", "--top-k", "3"]) == 0
    predictions = json.loads(capfd.readouterr().out)[0]["predictions"]
    assert server.requests[0] is None
    assert (server.requests[1] or "").startswith("bytes=")

    import torchvision.transforms.v2 as v2

    usual = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor()])
    pixels = usual(Image.open(picture)).float() / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = model(((pixels - mean) / std)[None]).softmax(1)[0].topk(3)
    assert [p["probability"] for p in predictions] == pytest.approx(expected.values.tolist(), rel=1e-3)
    assert predictions[0]["class"] == released_weights.imagenet_classes()[expected.indices[0]]

    requests = len(server.requests)
    assert main(["predict", f"{NAME}:{TAG}", str(picture)]) == 0
    assert len(server.requests) == requests  # from the cache
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [server.url.rsplit("/", 1)[1]]


@pytest.mark.usefixtures("server")
def test_create_model_with_released_weights(model: torch.nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    whole = convnext.create_model(NAME, weights=TAG)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert capfd.readouterr().err == ""
    adapted = convnext.create_model(NAME, num_classes=7, in_channels=1, weights=TAG)
    assert adapted(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    assert "the classifier of 1000 classes is left out" in capfd.readouterr().err
    assert torch.equal(adapted.stages[1][0].pwconv1.weight, whole.stages[1][0].pwconv1.weight)  # type: ignore[index,union-attr]


def test_fine_tuning(server: Server, small_folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model.name": NAME, "model.weights": TAG}
    changes |= {"data.root": small_folder, "data.image_size": 32}
    settings = convnext.recipe("folder", epochs=1, batch_size=16, output=tmp_path, trackers=(), **changes)
    run = convnext.train(settings.replace(**{"optimizer.lr": 1e-9, "ema_decay": None}))
    assert run.settings.data.mean == (0.485, 0.456, 0.406)
    trained = load_file(run.path / "checkpoints/last/model.safetensors")
    released = torch.load(BytesIO(server.body), weights_only=True)["model"]
    assert trained["head.weight"].shape == (3, 320)
    torch.testing.assert_close(trained["stages.0.0.pwconv1.weight"], released["stages.0.0.pwconv1.weight"])
    server.status = 404  # using the run needs no download
    shutil.rmtree(tmp_path / "cache")
    assert convnext.evaluate(run.path).top1 == run.report.top1


@pytest.mark.parametrize("fault", ["404", "cut", "checksum", "gone"])
def test_failed_downloads_are_one_line(
    server: Server,
    fault: str,
    picture: Path,
    small_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("convnext.storage.downloads.download.__defaults__", (None, True, 1, 0.0, 5.0))
    if fault == "404":
        server.status = 404
    elif fault == "cut":
        server.cuts = 100
    elif fault == "checksum":
        released = replace(catalogue.find(NAME, TAG), sha256="0" * 64)
        monkeypatch.setitem(catalogue.WEIGHTS, NAME, {TAG: released})
    else:
        server.shutdown()
        server.server_close()
    assert main(["predict", f"{NAME}:{TAG}", str(picture)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("convnext: ")
    assert err.count("\n") == 1
    assert server.url in err
    args = ["train", "folder", "--data.root", str(small_folder), "--output", str(tmp_path / "runs")]
    assert main([*args, "--model.name", NAME, "--model.weights", TAG, "--batch-size", "8"]) == 2
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not list((tmp_path / "runs").iterdir())


def test_convert_there_and_back(model: torch.nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    official, in_timm, back = (tmp_path / name for name in ("a.pth", "b.safetensors", "c.pth"))
    torch.save({"model": model.state_dict()}, official)
    assert main(["convert", str(official), str(in_timm), "--to", "timm"]) == 0
    assert "from official to timm" in capfd.readouterr().out
    theirs = timm.create_model("convnextv2_atto").eval()
    theirs.load_state_dict(load_file(in_timm))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), model(images), atol=1e-4, rtol=0)
    assert main(["convert", str(in_timm), str(back)]) == 0
    returned = torch.load(back, weights_only=True)["model"]
    assert all(torch.equal(tensor, returned[name]) for name, tensor in model.state_dict().items())


def peers(depths: list[int], dims: list[int], classes: int) -> dict[str, torch.nn.Module]:
    """The same small ConvNeXt of each library."""
    blocks = list(zip(dims, [*dims[1:], None], depths, strict=True))
    theirs = torchvision.models.convnext
    sizes: dict[str, Any] = {"depths": depths, "hidden_sizes": dims, "num_labels": classes}
    config = transformers.ConvNextConfig(**sizes, layer_norm_eps=1e-6)  # theirs is 1e-12, of the last norm
    return {
        "torchvision": theirs.ConvNeXt([theirs.CNBlockConfig(*block) for block in blocks], num_classes=classes),
        "timm": timm.models.ConvNeXt(depths=depths, dims=dims, num_classes=classes),  # type: ignore[arg-type]
        "transformers": transformers.ConvNextForImageClassification(config),
    }


@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_converted_file_is_what_the_library_loads(library: str, suffix: str, tmp_path: Path) -> None:
    depths, dims = [1, 1, 2, 1], [8, 16, 24, 32]
    ours = convnext.create_model("convnext_tiny", 6, depths=depths, dims=dims, head_init_scale=100.0).eval()
    source, target = tmp_path / "ours.ckpt", tmp_path / f"theirs{suffix}"
    raw = {name: tensor + 1 for name, tensor in ours.state_dict().items()}
    averaged = {f"module.{name}": tensor for name, tensor in ours.state_dict().items()}
    torch.save({"model": raw, "model_ema": averaged, "criterion": {"weight": torch.ones(6)}}, source)
    assert main(["convert", str(source), str(target), "--to", library]) == 0
    theirs = peers(depths, dims, 6)[library]
    theirs.load_state_dict(load_file(target) if suffix == ".safetensors" else torch.load(target))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = theirs.eval()(images)
        torch.testing.assert_close(getattr(logits, "logits", logits), ours(images), atol=1e-4, rtol=1e-4)


def test_convert_says_what_it_took(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backbone = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0).state_dict()
    torch.save({"net": backbone, "ema": {name: tensor + 1 for name, tensor in backbone.items()}}, tmp_path / "in.pth")
    args = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]
    assert main([*args, "--weights-key", "net"]) == 0
    out = capfd.readouterr().out
    assert "from timm to official; took the weights under 'net', not 'ema': see weights_key; there is no class" in out
    written = torch.load(tmp_path / "out.pth")["model"]
    assert torch.equal(written["downsample_layers.0.0.weight"], backbone["stem.0.weight"])


def test_convert_a_run(digits_run: convnext.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    assert main(["convert", str(digits_run.path), str(target), "--to", "torchvision"]) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("the weights are in its layout, but torchvision builds no ConvNeXt with ")
    assert "classifier.2.weight" in load_file(target)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("missing.pth out.pth", "missing.pth: it is not there"),
        ("weights.pth out.txt", "a weights file ends in .safetensors"),
        ("weights.pth weights.pth", "exists already"),
        ("weights.pth nowhere/out.pth", "folder nowhere is not there"),
        ("weights.pth out.pth --to torchvision", "layout torchvision cannot hold this ConvNeXt V2"),
        ("weights.pth out.pth --to keras", ", not 'keras' (see convnext convert --help)"),
        ("other.pth out.pth", "no known layout of a ConvNeXt has"),
    ],
)
def test_conversions_that_cannot_be(
    args: str,
    message: str,
    model: torch.nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(model.state_dict(), "weights.pth")
    torch.save({"layer1.weight": torch.zeros(3)}, "other.pth")
    assert main(["convert", *args.split()]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_malicious_checkpoint_never_runs(
    tmp_path: Path, digits_run: convnext.Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = Evil(f"touch {tmp_path / 'MARKER'}")
    torch.save({"model": evil}, "evil.pth")
    Path("evil.bin").write_bytes(pickle.dumps(evil, protocol=2))
    shutil.copy("evil.bin", "evil.safetensors")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load("evil.pth", weights_only=True)
    shutil.copytree(digits_run.path, "runs/digits", symlinks=True)
    spoiled = ["model.safetensors", "training.safetensors", "model.json", "training.json"]
    for name in spoiled:
        shutil.copytree(digits_run.path, f"spoiled-{name}/digits", symlinks=True)
        for folder in Path(f"spoiled-{name}/digits/checkpoints").glob("step-*"):
            shutil.copy("evil.bin", folder / name)
            digests = json.loads((folder / "sha256.json").read_text())  # whoever spoils a file can write its digest
            (folder / "sha256.json").write_text(json.dumps({**digests, name: digest(folder / name)}))
    commands = [f"convert {name} out.pth" for name in ("evil.pth", "evil.bin", "evil.safetensors")]
    commands += [f"{command} evil.pth{rest}" for command, rest in (("evaluate", ""), ("predict", " x.png"))]
    commands += [
        f"train digits --model.name convnext_atto --model.weights {name}" for name in ("evil.pth", "./evil.bin")
    ]
    commands += [f"train digits --epochs 4 --resume --output spoiled-{name}" for name in spoiled]
    commands += [f"{command} spoiled-{name}/digits{rest}" for name in ("model.safetensors", "model.json")
                 for command, rest in (("evaluate", ""), ("predict", " x.png"))]  # fmt: skip
    for command in commands:
        assert main(command.split()) == 2, command
        err = capfd.readouterr().err
        assert [line for line in err.splitlines() if line.startswith("convnext: ")], command
        assert "Traceback" not in err
    assert not Path("MARKER").exists()
    os.system(evil.command)  # the payload works: the assertion above means something
    assert Path("MARKER").exists()


def test_roadmap_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "roadmap.png"
    assert main(["roadmap", "--picture", str(picture)]) == 0
    out = capfd.readouterr().out
    assert "separate downsampling" in out
    assert "25,557,032" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_roadmap_steps_train(tmp_path: Path) -> None:
    changes = {"model.name": "roadmap", "epochs": 2, "output": tmp_path, "trackers": ()}
    first, last = (convnext.train(convnext.recipe("digits", **changes, **{"model.step": step})) for step in (0, 15))
    assert first.report.top1 > 0.2
    assert last.report.top1 > 0.2
    assert convnext.evaluate(first.path).top1 == first.report.top1
