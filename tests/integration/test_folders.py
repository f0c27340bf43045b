"""The commands on a folder as people have them: few images, and things among them that are none."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from convnext.cli import main

LEFT_OUT = (
    r"left out: pipes, devices and sockets 2 \(such as images/\S+\), .heic 1 \(such as images/0/IMG_1.HEIC\)"
    r"; convert HEIC to JPEG or PNG to use it"
)


def test_few_images_among_other_things(
    digits_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1", "2"):
        Path("images", name).mkdir(parents=True)
        for path in sorted((digits_images / "train" / name).iterdir())[:8]:
            shutil.copy(path, Path("images", name))
    Path("images/0/IMG_1.HEIC").touch()
    os.mkfifo("images/1/pipe.png")
    Path("images/2/endless.jpg").symlink_to("/dev/zero")

    small = ["--model.dims", "8", "16", "32", "--model.depths", "1", "1", "1", "--epochs", "2", "--data.workers", "0"]
    assert main(["train", "folder", "--data.root", "images", *small]) == 0
    printed = capfd.readouterr().err
    assert len(re.findall(LEFT_OUT, printed)) == 1
    assert printed.count("3 of 19 images are held out for val, more than data.val_fraction 0.1 of them") == 1
    assert "16 training, 3 validation, 5 test images of 3 classes" in printed

    assert main(["datasets", "check", "images", "--workers", "0"]) == 0
    assert re.search(f"note: {LEFT_OUT}", capfd.readouterr().out)

    assert main(["predict", "runs/folder", "images", "--json"]) == 0
    predicted = capfd.readouterr()
    assert len(json.loads(predicted.out)) == 24
    assert re.fullmatch(LEFT_OUT + "\n", predicted.err)

    assert main(["evaluate", "runs/folder", "--json"]) == 0
    evaluated = capfd.readouterr()
    assert json.loads(evaluated.out)["count"] == 5
    assert evaluated.err == "evaluating the test split: 5 images\n"
    shutil.move("images/0", "labelled/0")
    assert main(["evaluate", "runs/folder", "--data.root", "labelled", "--json"]) == 0
    evaluated = capfd.readouterr()
    assert json.loads(evaluated.out)["count"] == 8
    assert "evaluating all 8 images of labelled, which are not the images of runs/folder" in evaluated.err
