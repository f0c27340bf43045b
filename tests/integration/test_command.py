"""The command as a user types it: output, exit status, errors of one line, and what is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import convnext
from convnext.cli import main
from convnext.inference.export import onnx_file
from convnext.inference.export.formats import Source
from tests.support.killing import Started

COMMAND = [sys.executable, "-m", "convnext"]


def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "args", [["--help"], ["recipes"], ["models"], ["datasets"], ["train", "--help"], ["train", "digits", "--help"]]
)
def test_help_does_not_import_torch(args: list[str]) -> None:
    code = (
        "import sys; from convnext.cli import main; status = main(sys.argv[1:]);"
        "loaded = {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys(); sys.exit(f'{status} {loaded or None}')"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.stderr.strip() == "0 None"
    assert "digits" in done.stdout or args in (["--help"], ["models"])


def test_train_evaluate_predict(
    tmp_path: Path, digits_images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = run("train", "digits", "--epochs", 2, "--model.dims", 8, 16, 32, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "peak learning rate 0.002 = 0.002 x batch 64 / reference 64" in trained.stderr
    assert re.search(r"epoch 2/2; train loss [\d.]+, top-1 [\d.]+ %; val loss", trained.stderr)
    top1 = json.loads((tmp_path / "runs/digits/test_report.json").read_text())["top1"]
    assert f"top-1 {100 * top1:.2f} %" in trained.stdout
    assert "convnext predict runs/digits IMAGE" in trained.stdout

    assert main(["evaluate", "runs/digits", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["top1"] == top1
    assert {"top1", "top5", "macro_f1", "loss", "count", "per_class"} <= report.keys()
    assert report["count"] == sum(values["support"] for values in report["per_class"].values()) == 360

    image = sorted((digits_images / "test" / "7").iterdir())[0]
    images = [str(image), str(digits_images / "test" / "3")]
    assert main(["predict", "runs/digits", *images, "--top-k", "2", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert len(found) == 1 + len(list((digits_images / "test" / "3").iterdir()))
    assert found[0]["path"] == str(image)
    first, second = found[0]["predictions"]
    assert first.keys() == {"class", "probability"}
    assert first["probability"] >= second["probability"]

    piped = subprocess.run(
        [*COMMAND, "predict", "runs/digits", "-", "--json"], input=image.read_bytes(), capture_output=True, cwd=tmp_path
    )
    best = json.loads(piped.stdout)[0]
    assert (best["path"], best["predictions"][0]["class"]) == ("-", first["class"])


THREE_EPOCHS = ["train", "digits", "--epochs", "3", "--model.dims", "8", "16", "32", "--data.workers", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that the training ends with where nothing stops it."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([*THREE_EPOCHS, "--output", str(folder)]) == 0
    return (folder / "digits" / "checkpoints/last/model.safetensors").read_bytes()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_killed_and_resumed(
    tmp_path: Path, number: str, whole: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([*COMMAND, *THREE_EPOCHS], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 1/3"):
            break
    process.send_signal(getattr(__import__("signal"), number))
    last_words = process.stderr.read()
    status = process.wait()
    if number == "SIGTERM":
        assert status == 128 + 15
        assert "go on with: convnext train --resume runs/digits" in last_words
    else:
        assert status == -9
    assert main(["evaluate", "runs/digits", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["count"] == 360

    assert main([*THREE_EPOCHS, "--resume"]) == 0
    assert "resumed after step" in capfd.readouterr().err
    assert (tmp_path / "runs/digits/checkpoints/last/model.safetensors").read_bytes() == whole
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]


def write_half_and_signal(number: signal.Signals) -> None:
    def write(_: Source, path: Path) -> None:
        path.write_bytes(b"half")
        signal.raise_signal(number)

    onnx_file.write = write  # type: ignore[assignment]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(number: signal.Signals, digits_run: convnext.Run, tmp_path: Path) -> None:
    exported, log = tmp_path / "exported", tmp_path / "log"
    for folder in (exported, log):
        folder.mkdir()
    words = ["export", digits_run.path, "--output", exported / "model.onnx"]
    ended = Started(words, log, partial(write_half_and_signal, number)).end()
    assert ended.status == 128 + number
    assert f"convnext: stopped by {number.name}" in ended.text
    assert not list(exported.iterdir())


def test_a_signal_stays_one_where_a_library_makes_an_error_of_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            return [1][1]  # as an import does that was left half done
        return 0

    monkeypatch.setattr("convnext.commands.recipes.main", interrupted)
    assert main(["recipes"]) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "convnext: stopped by SIGTERM\n"


def test_resume_without_a_run_starts_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = ["train", "digits", "--epochs", "2", "--model.dims", "8", "16", "32", "--output", str(tmp_path), "--resume"]
    assert main(args) == 0
    assert "nothing to resume" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("trian digits", "no command is called 'trian': did you mean train?"),
        ("train", "which recipe? known: caltech101, "),
        ("train digit", "no recipe is called 'digit': did you mean digits?"),
        ("train digits --optimizer.lr -1", "optimizer.lr: input should be greater than 0, got -1.0"),
        ("train digits --epochs many", "--epochs"),
        ("train digits --epoch 3", "did you mean --epochs"),
        ("train digits --model.name convnext_tny", "no model is called 'convnext_tny': did you mean convnext_tiny"),
        ("train digits --model.dims 8 16", "one entry a stage each"),
        ("train digits --data.name digit", "no data set is called 'digit': did you mean digits"),
        ("train digits --data.image-size 2", "images of 2 px are too small"),
        ("train folder", "give --data.root DIR"),
        ("train folder --data.root missing", "data.root missing is not there"),
        ("train folder --data.root hollow", "has no class folders"),
        ("train folder --data.root single", "one class only (cat)"),
        ("train digits --output file", "cannot make run folder file: File exists"),
        ("train digits --output file/runs", "choose another --output"),
        ("train digits --output dangling", "cannot make run folder dangling"),
        ("train digits --name ..", "name: must be a plain folder name"),
        ("train digits --augment.crop-scale 0.9 0.1", "the smaller share comes first"),
        ("train --epochs 3 digits", "put digits first"),
        ("train digits --model convnext_tiny", "no option is called --model: did you mean --model.name? "),
        ("train digits --data c10", "did you mean --data.root or --data.name?"),
        ("train digits --imgsz 32", "did you mean --data.image-size?"),
        ("train digits --lr0 1", "did you mean --optimizer.lr?"),
        ("train digits --lr=1", "no option is called --lr: did you mean --optimizer.lr?"),
        ("train digits --project x", "did you mean --output?"),
        ("train digits --pretrained", "did you mean --model.weights?"),
        ("train digits --batch 3", "did you mean --batch-size?"),
        ("train digits -b 3", "did you mean --batch-size?"),
        ("train digits --workers 3", "did you mean --data.workers?"),
        ("train digits --opt adam", "did you mean --optimizer.name?"),
        ("train digits --drop-path 0.1", "did you mean --model.stochastic-depth?"),
        ("train digits --weight-decay 0.1", "did you mean --optimizer.weight-decay?"),
        ("train digits --zzzz", "no option is called --zzzz: none is alike"),
        ("train digits --device 0", "--device cuda with CUDA_VISIBLE_DEVICES=N"),
        ("train digits epochs=3", "epochs=3 has no dashes: did you mean --epochs 3?"),
        ("train digits imgsz=32", "did you mean --data.image-size 32?"),
        ("train digits hollow", "'hollow' is too much: a folder of images is given by --data.root hollow"),
        ("train epochs=3", "the recipe comes first, then its settings"),
        ("train hollow", "for the images of a folder: convnext train folder --data.root hollow"),
        ("train ./nowhere", "nor is that a folder; for the images of one: convnext train folder --data.root DIR"),
        ("train my_images", "For your own images: convnext train folder --data.root DIR"),
        ("train convnext_tiny", "that is a model: convnext train RECIPE --model.name convnext_tiny"),
        ("train digits --data.name c10", "did you mean cifar10?"),
        ("val runs/x", "no command is called 'val': did you mean evaluate?"),
        ("evaluate hollow --batch 3", "did you mean --batch-size?"),
        ("evaluate hollow --data x", "did you mean --data.root?"),
        ("datasets --to-folder new", "NAME --to-folder DIR"),
        ("datasets digits --to-folder file/new", "file: File exists"),
        ("evaluate missing", "run folder missing is not there"),
        ("evaluate hollow", "hollow has no checkpoint"),
        ("predict hollow x.png", "hollow has no checkpoint"),
        ("evaluate", "run"),
        ("recipes cifar", "did you mean cifar10"),
        ("datasets digit", "did you mean digits"),
        ("datasets digits --to-folder hollow", "hollow exists already"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    args: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow").mkdir()
    (tmp_path / "single" / "cat").mkdir(parents=True)
    (tmp_path / "single" / "cat" / "x.png").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "runs")
    before = sorted(tmp_path.rglob("*"))
    assert main(args.split()) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("convnext: ")
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_predict_names_unreadable_images_and_goes_on(
    digits_run: convnext.Run, digits_images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    good = sorted((digits_images / "test" / "7").iterdir())[0]
    assert main(["predict", str(digits_run.path), str(tmp_path / "bad.jpg"), str(good)]) == 2
    out, err = capfd.readouterr()
    assert "bad.jpg: unreadable image" in err
    assert good.name in out
    assert " %" in out


def test_predict_without_images_is_a_mistake(digits_run: convnext.Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(digits_run.path)]) == 2
    assert "which images?" in capfd.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "datasets"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_and_version_by_any_name(capfd: pytest.CaptureFixture[str]) -> None:
    for args, expected in ((["help"], "usage: convnext COMMAND"), (["-h"], "usage: convnext COMMAND")):
        assert main(args) == 0
        assert expected in capfd.readouterr().out
    for args in (["help", "train"], ["help", "train", "digits"], ["help", "datasets", "check"]):
        assert main(args) == 0
        assert f"usage: convnext {' '.join(args[1:])}" in capfd.readouterr().out
    for args in (["-v"], ["-V"], ["--version"]):
        assert main(args) == 0
        assert capfd.readouterr().out == f"convnext {convnext.__version__}\n"


def test_tables(capfd: pytest.CaptureFixture[str]) -> None:
    for command, expected in (("models", "28,589,128"), ("datasets", "cifar10"), ("recipes", "digits")):
        assert main([command]) == 0
        assert expected in capfd.readouterr().out
    assert main(["recipes", "digits"]) == 0
    assert '"reference_batch_size": 64' in capfd.readouterr().out


def test_our_own_mistakes_have_status_1(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], digits_run: convnext.Run
) -> None:
    monkeypatch.setattr("convnext.evaluation.evaluator.compute_report", None)
    assert main(["evaluate", str(digits_run.path)]) == 1
    assert "internal error: TypeError" in capfd.readouterr().err
    with pytest.raises(TypeError):
        main(["evaluate", str(digits_run.path), "--debug"])


def test_env_says_what_a_report_needs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CONVNEXT_KERNELS", "0")
    assert main(["env"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    facts = dict(line.split(": ", 1) for line in out.splitlines())
    assert facts["convnext"].startswith(convnext.__version__)
    assert {"python", "system", "cpu", "cores", "memory", "torch", "accelerators", "compiler", "cache"} <= facts.keys()
    assert "torchvision 0." in facts["libraries"]
    assert (facts["$HF_TOKEN"], facts["$CONVNEXT_KERNELS"]) == ("(set)", "0")
    assert facts["kernels"].startswith(("compiled", "PyTorch's own kernels ("))
    assert main(["env", "--json"]) == 0
    assert json.loads(capfd.readouterr().out).items() >= facts.items()


def test_env_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CC", "'")  # no words of a shell
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "no" / "folder"))
    monkeypatch.setattr("torch.cuda.is_available", None)
    assert main(["env"]) == 0
    out = capfd.readouterr().out
    assert "kernels: not known: ValueError: No closing quotation\n" in out
    assert "accelerators: not known: TypeError" in out
    assert f"cache: {tmp_path}/no/folder: 0 files, 0.0 MB\n" in out


def test_python_api_is_lazy_and_complete() -> None:
    code = (
        "import convnext, sys; assert 'torch' not in sys.modules; print([getattr(convnext, n) for n in dir(convnext)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = convnext.nonsense
