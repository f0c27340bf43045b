"""A run's folder with any of its files damaged: each command does its work, or ends with one line that says why."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import convnext
from convnext.cli import main
from convnext.plots import predictions
from convnext.storage.files import digest
from convnext.training import trainer

LAST = "checkpoints/last"
FILES = (
    *("settings.json", "metrics.jsonl", "test_report.json", ".lock"),
    *(f"{LAST}/{name}" for name in ("model.json", "model.safetensors", "training.json", "training.safetensors")),
    f"{LAST}/sha256.json",
)
Draw = random.Random


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run, `whole`, the same without its last checkpoint, `damaged`, and an image."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {"epochs": 2, "trackers": (), "batch_size": 512, "model.depths": (1, 1), "model.dims": (8, 16)}
    options = {"output": folder, "name": "damaged", "data.workers": 0, "ema_decay": 0.9}
    run = convnext.train(convnext.recipe("digits", **changes, **options)).path
    shutil.copytree(run, folder / "whole", symlinks=True)
    last = run / LAST
    shutil.rmtree(last.resolve())
    (left,) = last.parent.glob("step-*")
    last.unlink()
    last.symlink_to(left.name)
    Image.new("L", (8, 8), 128).save(folder / "image.png")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run to be damaged, beside a whole one; no pictures are drawn."""
    for module, picture in ((trainer, "curves"), (predictions, "confusion_matrix"), (predictions, "prediction_grid")):
        monkeypatch.setattr(module, picture, lambda *_: None)
    return Path(shutil.copytree(trained, tmp_path / "runs", symlinks=True)) / "damaged"


def cut(path: Path, draw: Draw) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.randrange(max(1, len(whole)))])


def flip(path: Path, draw: Draw) -> None:
    damaged = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 8)):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)


def garbage(path: Path, draw: Draw) -> None:
    path.write_bytes(draw.randbytes(draw.randint(1, 2000)))


def folder_instead(path: Path, _: Draw) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, Draw], object]] = {
    "cut": cut,
    "flip": flip,
    "empty": lambda path, _: path.write_bytes(b""),
    "garbage": garbage,
    "removed": lambda path, _: path.unlink(),
    "folder": folder_instead,
}


def check_commands(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command ends well, or with one line; the other run is listed as ever."""
    image = run.parent / "image.png"
    commands = (
        *(["inspect", run], ["predict", run, image], ["evaluate", run], ["train", "--resume", run]),
        ["convert", run, run.parent / "new.safetensors"],
    )
    for command in (["runs", run.parent, "--json"], *commands, ["runs", run.parent, "--json"]):
        status = main([str(word) for word in command])
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if line.startswith("convnext: ")]
        assert (status, len(lines)) in ((0, 0), (2, 1)), (command, output.err)
        assert "internal error" not in output.err
        assert "Traceback" not in output.err
        assert status == 0 or output.err.endswith(lines[0] + "\n"), (command, output.err)
        if command[0] == "runs":
            assert status == 0, output.err
            rows = {Path(row["path"]).name: row["status"] for row in json.loads(output.out)}
            assert rows["whole"] == "finished"
            assert "damaged" in rows or not (run / "settings.json").is_file()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_weights_that_are_not_what_was_written_are_taken_nowhere(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, image = run / LAST / name, run.parent / "image.png"
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 1  # which leaves it readable
    path.write_bytes(damaged)
    train = ["train", "digits", "--epochs", "1", "--output", str(run.parent / "more"), "--model.weights"]
    commands = [["predict", str(run), str(image)], [*train, str(run)], [*train, str(run / LAST / "model.safetensors")]]
    if name == "model.safetensors":  # the rest is of no use to a conversion
        commands += [["convert", str(source), str(run.parent / "new.pth")] for source in (run, run / LAST, path)]
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2
        assert f"{path} is damaged: its SHA-256 is not the one in sha256.json" in capsys.readouterr().err
    assert not (run.parent / "new.pth").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(damage: str, name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    DAMAGES[damage](run / name, Draw(f"{damage} {name}"))
    check_commands(run, capsys)


def value_of_another_kind(path: Path, draw: Draw) -> None:
    """Replace one value, anywhere in a JSON file."""
    whole = json.loads(path.read_text())
    places: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                visit(value[key])

    visit(whole)
    container, key = draw.choice(places)
    container[key] = draw.choice([-1, 0, 10**30, -0.5, 1e300, float("nan"), "x", "", None, True, [], [1], {}, {"a": 1}])
    path.write_text(json.dumps(whole))


def other_tensors(path: Path, draw: Draw) -> None:
    """Change one tensor of a file."""
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    changed: dict[str, dict[str, torch.Tensor]] = {
        "removed": {},
        "renamed": {f"{name}.x": tensor},
        "other shape": {name: torch.zeros(3, 5)},
        "other type": {name: tensor.to(torch.int8)},
        "one more": {name: tensor, "more": tensor.clone()},
        "none left": {},
    }
    kind = draw.choice(list(changed))
    save_file(({} if kind == "none left" else tensors) | changed[kind], path)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["model.json", "training.json", "model.safetensors", "training.safetensors"])
def test_a_file_that_its_digest_vouches_for(
    seed: int, name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    folder = run / LAST
    change = value_of_another_kind if name.endswith(".json") else other_tensors
    change(folder / name, Draw(f"{seed} {name}"))
    digests = {file: digest(folder / file) for file in json.loads((folder / "sha256.json").read_text())}
    (folder / "sha256.json").write_text(json.dumps(digests))
    check_commands(run, capsys)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["settings.json", "test_report.json"])
def test_values_of_other_kinds(seed: int, name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    value_of_another_kind(run / name, Draw(f"{seed} {name}"))
    check_commands(run, capsys)
