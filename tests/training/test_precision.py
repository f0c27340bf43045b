"""`--precision auto` on a CPU: measured once, said, and the same when the run goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convnext
from convnext import recipe
from convnext.config import RunSettings
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.models import registry
from convnext.training import precision, resolve
from convnext.training.precision import cpu_precision, measured

SIZE = 8
TINY = {"depths": (1, 1), "dims": (8, 16), "patch_size": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def splits() -> Splits:
    pixels = np.zeros((64, SIZE, SIZE, 3), np.uint8)
    source = ArraySource(pixels, np.arange(64) % 4, channels=3)
    return Splits(tuple("abcd"), source, None, source, (0.5,) * 3, (0.25,) * 3)


def settings(**changes: Any) -> RunSettings:
    """Of a run that is long enough to be worth a measurement."""
    resolved = recipe("cifar10", epochs=10**9, data={"image_size": SIZE, "start_size": None}, model=TINY)
    changed: RunSettings = resolved.replace(model=registry.resolve(resolved.model, 3)).replace(**changes)
    return changed


class Seconds:
    """In place of the measurement: ``ratio`` times as long in fp32 as in bf16."""

    def __init__(self, ratio: float) -> None:
        self.ratio, self.asked = ratio, list[tuple[int, int]]()

    def __call__(self, _: RunSettings, count: int, classes: int) -> dict[str, float]:
        self.asked.append((count, classes))
        return {"fp32": self.ratio * 0.25, "bf16": 0.25}


@pytest.mark.parametrize(("ratio", "chosen"), [(1.25, "bf16"), (1.2, "bf16"), (1.1875, "fp32"), (0.7, "fp32")])
def test_bf16_is_taken_where_it_is_worth_it_and_that_is_said(
    ratio: float, chosen: str, capfd: pytest.CaptureFixture[str]
) -> None:
    seconds = Seconds(ratio)
    assert cpu_precision(settings(), splits(), seconds) == chosen
    line = capfd.readouterr().err
    assert line.startswith(f"precision {chosen}: bf16 is {ratio:.2f} times as fast as fp32 here for this model")
    assert seconds.asked == [(128, 4)]  # a tiny model's whole batch


def test_it_is_measured_once_for_a_model_and_again_where_what_was_kept_is_damaged(cache: Path) -> None:
    seconds = Seconds(2.0)
    for _ in range(2):
        assert cpu_precision(settings(), splits(), seconds) == "bf16"
    assert len(seconds.asked) == 1
    assert cpu_precision(settings(**{"data.image_size": 16}), splits(), seconds) == "bf16"
    assert len(seconds.asked) == 2
    for path in cache.rglob("*.json"):
        path.write_text('{"bf16": 1.0')
    assert cpu_precision(settings(), splits(), seconds) == "bf16"
    assert len(seconds.asked) == 3


def test_short_runs_what_is_compiled_and_modules_of_ones_own_are_not_measured() -> None:
    seconds = Seconds(2.0)
    own = settings(**{"model.name": registry.OWN})
    for each in (settings(epochs=10), settings(compile=True), own):
        assert cpu_precision(each, splits(), seconds) == "fp32"
    assert seconds.asked == []


def test_the_demo_computes_in_fp32_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measured", Seconds(2.0))
    resolved, _, accelerator = resolve.prepare(recipe("digits", device="cpu"))
    assert (resolved.precision, accelerator.mixed_precision) == ("fp32", "no")


@pytest.mark.parametrize("name", ["convnext_tiny", "resnet18"])
def test_the_measurement_measures_both_and_leaves_the_random_numbers_alone(name: str) -> None:
    model = TINY if name == "convnext_tiny" else {"name": name, "depths": None, "dims": None, "patch_size": None}
    changed = recipe("cifar10", data={"image_size": 32, "start_size": None}, model=model)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    seconds = measured(changed.replace(model=registry.resolve(changed.model, 3)), 2, 4)
    assert set(seconds) == {"fp32", "bf16"}
    assert min(seconds.values()) > 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_keeps_its_precision_when_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(torch.utils.data.Dataset[Any]):
        classes = ("a", "b")

        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.full((3, SIZE, SIZE), index, dtype=torch.uint8), index % 2

    monkeypatch.setattr(precision, "LONG", 0.0)
    data = {"train": Plain(), "test": Plain()}
    changes: dict[str, Any] = {
        "batch_size": 4,
        "device": "cpu",
        "output": tmp_path,
        "trackers": (),
        "data.start_size": None,
    }
    changes |= {"data.image_size": SIZE, "data.workers": 0, "data.val_fraction": 0.0, "epochs": 1}
    changes |= {f"model.{name}": value for name, value in TINY.items()}
    for ratio, resume in ((2.0, False), (0.5, True)):  # as another machine, or another hour, would have it
        monkeypatch.setattr(precision, "measured", Seconds(ratio))
        monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / f"cache-{ratio}"))
        run = convnext.train("cifar10", data=data, resume=resume, **changes)
        assert run.settings.precision == "bf16"
    fresh = convnext.train("cifar10", data=data, **changes)
    assert fresh.settings.precision == "fp32"
    again = convnext.train(recipe("cifar10", **changes), data=data, resume=run.path)
    assert again.settings.precision == "bf16"
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2))
    kept = convnext.train("cifar10", data=data, model=model, **changes, **{"optimizer.name": "adamw"})
    assert kept.settings.precision == "fp32"
