"""The weights with which a run begins."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import convnext
from convnext import recipe
from convnext.config import RunSettings
from convnext.data.loading.loader import Batch
from convnext.models.convnext import Whitening
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.trainer import Trainer


def settings(output: Path, **changes: object) -> RunSettings:
    model = {"pool": True, "whitening": True, "depths": (1, 1), "dims": (8, 16), "patch_size": 2}
    optimizer = {"name": "muon", "muon_filters": True, "lr": 2e-2}
    return recipe("digits", epochs=2, output=output, model=model, optimizer=optimizer, **changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def test_whitened_patches_are_uncorrelated_and_of_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 9, 9, generator=generator)
    images = images + 2 * images.mean((-2, -1), keepdim=True) + 0.5 * images[:, :1]
    whitening = Whitening(3)
    whitening.fit(images, eps=0)
    with torch.no_grad():
        values = torch.nn.functional.conv2d(images, whitening.weight).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(values[:, :12], -values[:, 12:])
    second_moments = values[:, :12].T @ values[:, :12] / len(values)
    torch.testing.assert_close(second_moments, torch.eye(12), atol=1e-4, rtol=0)


def test_a_run_that_whitens_learns_goes_on_exactly_and_is_a_start_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convnext.train(settings(tmp_path / "whole"))
    assert whole.report.top1 > 0.6
    step, calls = Trainer.step, iter(range(1_000_000))

    def step_with_signal(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if next(calls) == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch, signals)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_with_signal)
        with pytest.raises(InterruptedRunError):
            convnext.train(settings(tmp_path / "cut"))
    resumed = convnext.train(settings(tmp_path / "cut"), resume=True)
    expected, other = weights(whole.path), weights(resumed.path)
    assert all(torch.equal(other[name], tensor) for name, tensor in expected.items())
    begun = convnext.train(settings(tmp_path / "begun", freeze=1, **{"model.weights": str(whole.path)}))
    for name in ("whitening.weight", "downsample_layers.0.1.running_mean"):
        torch.testing.assert_close(weights(begun.path)[name], expected[name])
    last = "downsample_layers.1.1.running_mean"  # which is not frozen
    assert not torch.equal(weights(begun.path)[last], expected[last])
    assert convnext.evaluate(whole.path).top1 == whole.report.top1


def test_two_ways_to_shrink_are_refused(tmp_path: Path) -> None:
    with pytest.raises(convnext.errors.SettingsError, match=r"model\.overlap and model\.pool are two ways"):
        convnext.train(settings(tmp_path, **{"model.overlap": True}))
