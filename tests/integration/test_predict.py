"""``convnext predict``, as a user calls it."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convnext
from convnext.cli import main
from tests.support.loopback import Server

ROW = re.compile(r"  (.*?) {3,}(\d+\.\d) % ([█▌ ]+)  (\S+)")


@pytest.fixture
def run(digits_run: convnext.Run) -> str:
    return str(digits_run.path)


@pytest.fixture
def folder(digits_images: Path) -> Path:
    """Some dozens of images of one digit."""
    return digits_images / "test" / "3"


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, *args: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        assert main(["predict", *args]) == 0
    return out.getvalue().splitlines()


def test_few_images_have_several_classes_each(run: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = list(map(str, sorted(folder.iterdir())[:2]))
    assert main(["predict", run, *images]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    header, line, *rows = out.splitlines()
    assert header.split() == ["image", "probability", "class"]
    assert set(line.strip()) == {"─"}
    parsed = [match.groups() for row in rows if (match := ROW.fullmatch(row))]
    assert len(parsed) == len(rows) == 10
    assert [name.strip() for name, *_ in parsed] == [images[0], *[""] * 4, images[1], *[""] * 4]
    expected = [one for result in convnext.Predictor.load(run).batches(images) for one in result]  # type: ignore[union-attr]
    assert [(f"{100 * one.probability:.1f}", one.class_name) for one in expected] == [row[1::2] for row in parsed]
    for one, (*_, bar, _) in zip(expected, parsed, strict=True):
        assert bar.count("█") + bar.count("▌") / 2 == pytest.approx(20 * one.probability, abs=0.26)


def test_of_many_images_the_best_class_and_a_count(run: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    count = len(list(folder.iterdir()))
    assert count > 10
    assert main(["predict", run, str(folder)]) == 0
    rows = capfd.readouterr().out.splitlines()
    assert len(rows) == 2 + count + 1
    assert re.match(rf"{count} images: 3 \d+", rows[-1])
    assert main(["predict", run, str(folder), "--top-k", "2"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2 + 2 * count + 1


def test_names_that_are_too_long_stand_above(
    run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / f"{'größe' * 12}.png"
    Image.open(min(folder.iterdir())).save(image)
    monkeypatch.chdir(tmp_path)
    name, *rows = on_terminal(monkeypatch, 80, run, image.name)
    assert name == f"  {image.name}"
    assert len(rows) == 5
    assert max(map(len, rows)) < 80
    assert len(on_terminal(monkeypatch, 200, run, image.name)) == 2 + 5
    assert main(["predict", run, image.name]) == 0
    assert capfd.readouterr().out.count(image.name) == 1


def test_csv_has_a_row_a_class(run: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / 'a, "b"\n.png'
    Image.open(min(folder.iterdir())).save(image)
    assert main(["predict", run, str(image), str(folder), "--csv", "--top-k", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert list(rows[0]) == ["path", "rank", "class", "probability"]
    assert len(rows) == 2 * (1 + len(list(folder.iterdir())))
    assert [rows[0]["path"], rows[0]["rank"], rows[1]["rank"]] == [str(image), "1", "2"]
    expected = convnext.Predictor.load(run)(image, 2)
    assert [row["class"] for row in rows[:2]] == [prediction.class_name for prediction in expected]
    probabilities = [prediction.probability for prediction in expected]
    # One image alone and several at a time are rounded differently.
    assert [float(row["probability"]) for row in rows[:2]] == pytest.approx(probabilities, rel=1e-6)


def test_the_list_is_json_whatever_fails(run: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_text("no image")
    assert main(["predict", run, str(tmp_path), "--json"]) == 2
    out, err = capfd.readouterr()
    assert json.loads(out) == []
    assert "bad.png: unreadable image" in err
    assert err.splitlines()[-1] == "convnext: 1 of 1 image could not be read"


def test_a_url_is_an_image_and_is_fetched_once(
    run: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = min(folder.iterdir())
    server = Server(files={"a%20b.png": image.read_bytes(), "page.html": b"<html>"})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"{server.base}{name}" for name in ("a b.png", "page.html", "missing.png")]
    assert main(["predict", run, *urls, str(image), "--json", "--explain", str(tmp_path / "maps")]) == 2
    server.shutdown()
    assert len(server.requests) == len(urls)
    out, err = capfd.readouterr()
    first, second = json.loads(out)
    assert (first["path"], second["path"]) == (urls[0], str(image))
    assert first["predictions"] == second["predictions"]
    page, missing, maps, summary = err.splitlines()
    assert maps == f"2 explanations in {tmp_path / 'maps'}"
    assert page.startswith(f"convnext: {urls[1]}: unreadable image (no image format")
    assert missing == f"convnext: cannot fetch {urls[2]}: the server answers 404 Not Found"
    assert summary == "convnext: 2 of 4 images could not be read"


def test_files_beside_the_table(
    run: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = list(map(str, sorted(folder.iterdir())[:3]))
    (tmp_path / "bad.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    files = ["--save-picture", "out", "--contact-sheet", "sheet.png", "--embed", "features.npy", "--flip"]
    assert main(["predict", run, "bad.png", *images, *files]) == 2
    assert "3 pictures in out" in capfd.readouterr().err
    assert sorted(path.name for path in Path("out").iterdir()) == [Path(image).name for image in images]
    assert Image.open("sheet.png").width > 100
    expected = convnext.Predictor.load(run).embed(images, flip=True)
    assert np.allclose(np.load("features.npy"), expected, atol=1e-6)
    assert Path("features.paths.txt").read_text().splitlines() == images
    assert main(["predict", run, *images, "--embed", "features.npy"]) == 2
    assert capfd.readouterr().err == "convnext: features.npy exists already: choose a new name\n"


def test_results_come_as_they_are_made(run: str, folder: Path) -> None:
    images = [str(folder)] * 40
    command = [sys.executable, "-m", "convnext", "predict", run, *images, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"[{")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("form", ["--csv", "--top-k=5"])
def test_files_are_written_whoever_reads_standard_output(
    form: str,
    run: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    images = list(map(str, folder.iterdir())) * 2
    files = ["--embed", str(tmp_path / "features.npy"), "--contact-sheet", str(tmp_path / "sheet.png")]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        assert main(["predict", run, *images, form, *files]) == 0
    assert capfd.readouterr().err == ""
    assert len(np.load(tmp_path / "features.npy")) == len(images)
    assert Image.open(tmp_path / "sheet.png").width > 100


def test_a_process_ends_well_whoever_reads_its_output(run: str, folder: Path, tmp_path: Path) -> None:
    images = list(map(str, folder.iterdir()))
    files = ["--embed", str(tmp_path / "features.npy"), "--contact-sheet", str(tmp_path / "sheet.png")]
    command = [sys.executable, "-m", "convnext", "predict", run, *images * 2, "--json", *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len(np.load(tmp_path / "features.npy")) == 2 * len(images)
    assert Image.open(tmp_path / "sheet.png").width > 100


def test_one_form_of_output(run: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", run, str(folder), "--json", "--csv"]) == 2
    assert capfd.readouterr().err == "convnext: --json and --csv: choose one\n"


def test_explanations_are_written_for_each_image(
    run: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted(folder.iterdir())[:2]
    maps = tmp_path / "maps"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(images[0].read_bytes())))
    options = ["--explain", str(maps), "--explain-class", "7", "--explain-stage", "0"]
    assert main(["predict", run, *map(str, images), "-", *options]) == 0
    assert f"3 explanations in {maps}" in capfd.readouterr().err
    assert {path.name for path in maps.iterdir()} == {f"{path.stem}.png" for path in (*images, Path("standard-input"))}
    written = [np.asarray(Image.open(maps / f"{name}.png")) for name in (images[0].stem, "standard-input")]
    assert np.array_equal(written[0], written[1])
    expected = convnext.Predictor.load(run).explain(images[0], "7", stage=0).picture()
    assert np.array_equal(written[0][..., :3], np.asarray(expected))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--explain-class", "3"], "are for --explain FOLDER"),
        (["--explain", "maps", "--explain-class", "eight"], "the model has no class 'eight': known: 0, 1, 2"),
        (["--explain", "maps", "--explain-method", "occlusion", "--explain-stage", "1"], "looks at the whole model"),
        (["--explain", "maps", "--explain-method", "lime"], "--explain-method"),
    ],
)
def test_what_cannot_be_explained_writes_nothing(
    words: list[str],
    message: str,
    run: str,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", run, str(folder), *words]) == 2
    assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
