"""What the benchmarks have in common: turns of processes, and what is written down. What they measure is not tested."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import epoch
import prediction
import record
import roofline
import training
import turns
from run_json import Machine, Run
from turns import ContestantError, Times, take_turns

from convnext import recipe
from convnext.config import ModelSettings, RunSettings
from convnext.models import registry


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
    assert "ratio_torchvision" not in small.numbers
    assert runs["step-224px-fp32"].numbers["ratio_torchvision"] == 2.0
    assert runs["predict-224px-fp32-batch-16"].numbers == {"ratio_timm": 1.23, "ours_ms": 10.0, "timm_ms": 12.3}
    assert (small.commit, small.command) == ("a" * 40, f"python benchmarks/{' '.join(sys.argv)}")


def test_the_training_benchmark_prints_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "LEAST_ROUNDS", 1)
    words = ["training.py", "--depths", "1", "1", "--dims", "8", "16", "--size", "8", "--batch", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "1", "--peers", "timm-expert", "--json"])
    assert training.main() == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["contestants"]) == {"ours", "timm-expert"}
    ours, peer = result["contestants"].values()
    assert peer["ratio"] == pytest.approx(peer["ms"] / ours["ms"])
    monkeypatch.setattr(sys, "argv", [*words, "--patch", "2", "--peers", "torchvision"])
    assert training.main() == 1
    assert "torchvision: its model has " in capsys.readouterr().err


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
