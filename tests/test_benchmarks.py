"""What the benchmarks have in common: turns of processes, and what is written down. What they measure is not tested."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import epoch
import kernels
import loading
import prediction
import record
import resident
import roofline
import training
import turns
import views
from command import run_command
from run_json import Machine, Run
from turns import ContestantError, Times, take_turns

from convnext import recipe
from convnext.config import ModelSettings, RunSettings
from convnext.errors import SettingsError, UserError
from convnext.models import registry
from convnext.models.convnext import Block
from convnext.training.optimizers import make_optimizers

SMALL = training.Case((1, 1), (8, 16), 2, 8, 4)


def contestant(log: Path, name: str, fails: bool, _: ExitStack) -> Callable[[], None]:
    """Writes its name down at every step."""

    def step() -> None:
        if fails:
            raise ValueError("no such algorithm")
        with log.open("a") as file:
            file.write(name)

    return step


def test_contestants_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    makers = {name: partial(contestant, log, name, False) for name in "ab"}
    times = take_turns(makers, "cpu", rounds=4)
    warm_up, rounds = log.read_text()[:6], log.read_text()[6:]
    assert (warm_up, rounds) == ("aaabbb", "abababab")
    assert {name: len(each.turns) for name, each in times.items()} == {"a": 4, "b": 4}
    assert all(each.median > 0 and each.idle >= 0 for each in times.values())
    with pytest.raises(ContestantError, match="a: ValueError: no such algorithm"):
        take_turns({"a": partial(contestant, log, "a", True)}, "cpu", rounds=4)


def test_the_first_step_of_a_turn_is_not_timed_however_long_a_step_takes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    makers = {name: partial(contestant, log, name, False) for name in "ab"}
    take_turns(makers, "cpu", rounds=3, turn=1e-9)  # less than a step
    assert log.read_text() == "aaabbb" + "aabb" * 3


def without_library(_: ExitStack) -> Callable[[], None]:
    """Cannot be built."""
    raise ModuleNotFoundError("No module named 'timm'")


def with_process_number(path: Path, _: ExitStack) -> Callable[[], None]:
    """Writes its process number down when it is built."""
    path.write_text(str(os.getpid()))
    return lambda: None


def killer(path: Path, _: ExitStack) -> Callable[[], None]:
    """Its step kills the process whose number is written there."""
    return lambda: os.kill(int(path.read_text()), signal.SIGKILL)


def test_a_contestant_that_cannot_be_built_or_dies_is_named(tmp_path: Path) -> None:
    log, number = tmp_path / "log", tmp_path / "number"
    makers: dict[str, turns.Make] = {"ours": partial(contestant, log, "a", False), "timm": without_library}
    with pytest.raises(ContestantError, match="timm: ModuleNotFoundError: No module named 'timm'"):
        take_turns(makers, "cpu", rounds=1)
    assert not log.exists()  # nobody is measured
    makers = {"ours": partial(killer, number), "timm": partial(with_process_number, number)}
    with pytest.raises(ContestantError, match="timm: its process died"):
        take_turns(makers, "cpu", rounds=1)


def test_a_peer_without_its_library_is_named_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models.convnext", None)
    with pytest.raises(ContestantError, match="timm: ModuleNotFoundError: "):
        training.measure(SMALL, ["timm-expert"], rounds=1)


@pytest.mark.parametrize(
    ("gpu", "cpu", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "h100"),
        ("NVIDIA A100-SXM4-40GB", None, "a100"),
        (None, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c-2-cores"),
        (None, "AMD EPYC", "amd-epyc-2-cores"),
    ],
)
def test_a_folder_is_named_after_the_machine(gpu: str | None, cpu: str | None, name: str) -> None:
    assert record.short_name(Machine(name=cpu, cores=2, memory_gb=24, gpu=gpu)) == name


def test_everything_is_written_down_as_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = __import__("all")
    seconds = {"ours": 0.2, "timm": 0.3, "timm-expert": 0.25, "timm-compiled": 0.24, "torchvision": 0.4}
    seconds["ours-fp32"] = 0.35

    def measured(case: training.Case, peers: list[str], *_: object) -> dict[str, Times]:
        if case.size == 224 and case.precision == "bf16":
            raise ContestantError("timm: out of memory")
        return {name: Times([seconds[name]] * 3, 0.0) for name in ("ours", *peers)}

    monkeypatch.setattr(training, "measure", measured)
    monkeypatch.setattr(prediction, "measure", lambda *_: {"ours": Times([0.01], 0.0), "timm": Times([0.0123], 0.0)})
    words = ["all.py", "--only", "step", "inference", "--device", "cpu", "--machine", "here", "--commit", "a" * 40]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path)])
    assert everything.main() == 1  # one was left out
    runs = {path.parent.name: Run.model_validate_json(path.read_bytes()) for path in tmp_path.rglob("run.json")}
    assert "step-224px-bf16" not in runs
    assert len(runs) == 3 + 4
    small = runs["step-32px-bf16"]
    assert small.numbers["ratio_timm_expert"] == 1.25
    assert small.numbers["timm_expert_ms"] == 250.0
    assert small.numbers["ratio_ours_fp32"] == 1.75
    assert "ratio_ours_fp32" not in runs["step-32px-fp32"].numbers
    assert "ratio_torchvision" not in small.numbers
    assert runs["step-224px-fp32"].numbers["ratio_torchvision"] == 2.0
    assert runs["predict-224px-fp32-batch-16"].numbers == {"ratio_timm": 1.23, "ours_ms": 10.0, "timm_ms": 12.3}
    assert (small.commit, small.command) == ("a" * 40, f"python benchmarks/{' '.join(sys.argv)}")


def refused(main: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on standard error of a command that ends with exit status 2."""
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_training_benchmark_prints_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "LEAST_ROUNDS", 1)
    words = ["training.py", "--depths", "1", "1", "--dims", "8", "16", "--size", "8", "--batch", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "1", "--peers", "timm-expert", "--json"])
    training.main()
    result = json.loads(capsys.readouterr().out)
    assert set(result["contestants"]) == {"ours", "timm-expert"}
    ours, peer = result["contestants"].values()
    assert peer["ratio"] == pytest.approx(peer["ms"] / ours["ms"])
    monkeypatch.setattr(sys, "argv", [*words, "--patch", "2", "--peers", "torchvision"])
    assert "torchvision: its model has " in refused(training.main, capsys)


def test_the_work_of_a_step_is_counted_as_the_model_has_it() -> None:
    case = training.Case()
    work = roofline.work(case)
    settings = registry.resolve(ModelSettings(depths=case.depths, dims=case.dims, patch_size=case.patch), 3)
    rest = (work["mlp_forward"][0] + work["depthwise_forward"][0]) / (2e-9 * case.batch)
    assert 0.9 < rest / registry.cost(settings, case.size, training.CLASSES)[1] < 1  # stem, downsampling and head
    assert work["mlp_backward"][0] == 2 * work["mlp_forward"][0]


def test_an_epoch_is_measured_against_bare_steps(digits_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str, **changes: Any) -> RunSettings:
        return recipe(name, batch_size=16, data={"image_size": 8}, model={"depths": (1, 1), "dims": (8, 16)}, **changes)

    monkeypatch.setattr(epoch, "recipe", small)
    seen = epoch.measure("cifar10", digits_images, folder=True, precision="fp32", limit=200, rounds=2)
    assert seen.steps == 200 // 16 - epoch.AHEAD
    assert len(seen.epochs) == 2
    assert seen.ratio > 0
    assert 0 < seen.spent["step"] < sum(seen.epochs)
    assert seen.spent["validation"] > 0  # in one of the two


@pytest.mark.parametrize(
    ("module", "words", "line"),
    [
        (kernels, ["--shapes", "16,96"], "kernels.py: error: argument --shapes: '16,96' is not images,dim,size"),
        (kernels, ["--shapes", "4,8,1"], "kernels.py: error: argument --shapes: '4,8,1' is not images,dim,size"),
        (kernels, ["--rounds", "0"], "kernels.py: error: argument --rounds: '0' is no whole number from 1"),
        (views, ["--batch", "0"], "views.py: error: argument --batch: '0' is no whole number from 1"),
        (prediction, ["--rounds", "0"], "prediction.py: error: argument --rounds: '0' is no whole number from 1"),
        (training, ["--rounds", "none"], "training.py: error: argument --rounds: 'none' is no whole number from 1"),
        (training, ["--precision", "fp16", "--device", "cpu"], "training.py: error: precision fp16 "),
        (training, ["--depths", "1", "--device", "cpu"], "training.py: error: "),
        (loading, ["--images", "nowhere"], "loading.py: error: nowhere: there is no image in it"),
        (loading, ["--images", __file__], f"loading.py: error: {__file__}: it is no folder, and as a tar file "),
        (resident, ["--images", "nowhere"], "resident.py: error: data.root nowhere is not there"),
        (epoch, ["cifar10", "--folder", "--root", "nowhere"], "epoch.py: error: data.root nowhere is not there"),
    ],
)
def test_what_cannot_be_measured_is_a_line_and_exit_status_2(
    module: Any, words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    for setter in ((loading, "keep_freed_memory"), (resident, "keep_freed_memory"), (torch, "set_num_threads")):
        monkeypatch.setattr(*setter, lambda *_: None)  # the process is that of other tests, too
    assert refused(module.main, capsys).startswith(line)


def test_without_kernels_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)
    with pytest.raises(UserError, match="there is nothing to measure: "):
        kernels.check_kernels([(4, 8, 4)], "fp32")


def test_a_timed_backward_adds_to_no_gradient_and_casts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = Block(2), torch.rand(1, 2, 4, 4, requires_grad=True)
    clock = 0.0

    class Gradient:
        """Whose cast takes a minute."""

        def to(self, dtype: torch.dtype) -> torch.Tensor:
            nonlocal clock
            clock += 60
            return torch.ones(1, 2, 2, 2, dtype=dtype)

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    for _ in range(2):
        assert kernels.seconds(kernels.torch_pooling, block, x, cast(Any, Gradient()), True, False) == 0
        assert x.grad is not None
        assert x.grad.sum() == 8
    assert clock == 120


def test_images_of_any_spelling_of_jpeg_are_loaded(tmp_path: Path) -> None:
    names = ["cat_1.jpg", "cat_2.JPEG", "deeper/dog_1.JPG", "dog_2.jpeg", "notes.txt"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    folder = loading.folder_of(tmp_path / "images", 2, tmp_path)
    links = {path.relative_to(folder).as_posix(): path.resolve().name for path in folder.rglob("*.JPEG")}
    assert links == {
        f"{Path(name).stem[:3]}/{Path(name).stem}-{number}.JPEG": Path(name).name
        for name in names[:4]
        for number in range(2)
    }


def test_bare_steps_compute_as_the_trainer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = training.make_trainer(SMALL)
    prepared: list[torch.nn.Module] = []

    def recorded(model: torch.nn.Module, settings: Any) -> list[torch.optim.Optimizer]:
        prepared.append(model)
        return make_optimizers(model, settings)

    monkeypatch.setattr(training, "make_optimizers", recorded)
    training.bare_loop(trainer, training.batch_of(trainer))
    (model,) = prepared
    assert list(map(type, model.modules())) == list(map(type, trainer.raw_model.modules()))
    images = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == trainer.raw_model(images).dtype == torch.float32


def test_a_peer_is_compiled_as_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def compiled(model: torch.nn.Module, **how: Any) -> torch.nn.Module:
        asked.append(how)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    with ExitStack() as stack:
        for name in ("ours-compiled", "timm-compiled"):
            training.CONTESTANTS[name](SMALL, stack)
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_lengths_that_cannot_be_measured_are_refused_before_training() -> None:
    settings = recipe("cifar10", epochs=4, batch_size=16)
    epoch.check_lengths(settings, 11 * 16, 2)
    with pytest.raises(SettingsError, match="--rounds 3: the recipe has 4 epochs, of which 2 can be measured"):
        epoch.check_lengths(settings, 11 * 16, 3)
    with pytest.raises(SettingsError, match=r"--limit: .* at least 176 are needed"):
        epoch.check_lengths(settings, 11 * 16 - 1, 2)


@pytest.mark.parametrize(("precision", "listed"), [("fp32", True), ("bf16", False)])
def test_a_part_of_a_step_without_time_has_no_row(
    precision: str, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = dict.fromkeys(roofline.EVENTS, 1.0) | {"stem_downsampling_head": float(listed), "rest": 0.0, "step": 6.0}
    peaks = {f"matmul_{precision}_gflops": 100.0, "copy_gbs": 10.0}
    monkeypatch.setattr(roofline, "profiled", lambda _: parts)
    monkeypatch.setattr(roofline, "peaks", lambda: peaks)
    numbers = roofline.numbers_of(training.Case(precision=precision))
    assert ("stem_downsampling_head_ms" in numbers) == listed
    assert (numbers["rest_ms"], numbers["step_ms"]) == (0.0, 6.0)


def test_views_are_measured_only_where_both_make_the_same() -> None:
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    for contestants in (views.resized_crops(pixels), views.affine("Rotate", pixels)):
        assert all(seconds > 0 for seconds in views.medians(contestants, 1))
    with pytest.raises(UserError, match="other images"):
        views.medians((lambda: pixels, lambda: 255 - pixels), 1)
