"""Depthwise filters drawn with the covariance of a trained network's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import convnext
from convnext import create_model, recipe
from convnext.errors import SettingsError
from convnext.models.convnext import Block, ConvNeXt
from convnext.training.filters import draw_filters
from convnext.weights.loading import write
from tests.support.stopping import stopped_after


def filters(model: ConvNeXt, stage: int) -> Tensor:
    blocks = [block for block in model.stages[stage].modules() if isinstance(block, Block)]
    return torch.cat([block.dwconv.weight.detach().flatten(1) for block in blocks])


def trained(path: Path, kernel_size: int = 3) -> ConvNeXt:
    """A network of three stages, each with filters of a covariance of its own."""
    torch.manual_seed(0)
    shape = {"depths": (2, 1, 2), "dims": (48, 64, 96), "kernel_size": kernel_size}
    model = create_model("convnext_atto", 5, **shape)
    size = kernel_size**2
    for stage in range(3):
        mixing = torch.randn(size, size) / 5 * torch.linspace(1, 0.1, size)[:, None]
        for block in model.stages[stage].modules():
            if isinstance(block, Block):
                block.dwconv.weight.data.copy_(
                    (torch.randn(block.dwconv.weight.shape[0], size) @ mixing).view_as(block.dwconv.weight)
                )
    write(model.state_dict(), path)
    return model


def test_each_stage_has_the_covariance_of_the_stage_at_its_depth(tmp_path: Path) -> None:
    other = trained(tmp_path / "other.safetensors")
    model = create_model("convnext_atto", 3, depths=(1, 1, 1, 1, 1), dims=(2048,) * 5, kernel_size=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "other.safetensors" in draw_filters(model, tmp_path / "other.safetensors")
    for stage, source in enumerate((0, 0, 1, 2, 2)):  # depths of 0, 1/4, 1/2, 3/4 and 1
        drawn, theirs = filters(model, stage), filters(other, source)
        expected = theirs.T @ theirs / len(theirs)
        assert torch.allclose(drawn.T @ drawn / len(drawn), expected, atol=0.15 * float(expected.diag().max())), stage
        correlated = (expected - expected.diag().diag()).abs().max()
        assert correlated > 0.2 * expected.diag().max()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.endswith("dwconv.weight"), name


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "other.safetensors", kernel_size=5)
    model = create_model("convnext_atto", 3, depths=(1, 1), dims=(8, 16), kernel_size=3)
    with pytest.raises(SettingsError, match=r"are of 5 x 5 and the model's of 3 x 3: set model\.kernel_size to 5"):
        draw_filters(model, tmp_path / "other.safetensors")
    with pytest.raises(SettingsError, match="filters_from is for ConvNeXt, not ResNet"):
        draw_filters(create_model("resnet18", 3), tmp_path / "other.safetensors")
    with pytest.raises(SettingsError, match="filters_from is for random weights"):
        recipe("digits", filters_from=tmp_path, **{"model.weights": "in1k"})


def test_a_run_begins_with_them_and_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a run, by a relative path; its folder is not needed any more once the other is under way."""
    monkeypatch.chdir(tmp_path)
    tiny = {"depths": (1, 1), "dims": (8, 16)}
    settings = recipe("digits", epochs=2, output=tmp_path, model=tiny, trackers=())
    plain = convnext.train(settings)
    later = settings.replace(filters_from=plain.path.relative_to(tmp_path), save_every_steps=5)
    whole = convnext.train(later.replace(name="whole"))
    assert not torch.equal(weight(plain.path), weight(whole.path))
    with stopped_after(12):
        convnext.train(later.replace(name="stopped"))
    shutil.rmtree(plain.path)
    stopped = tmp_path / "stopped"
    assert json.loads((stopped / "settings.json").read_text())["filters_from"] == str(plain.path)
    again = convnext.train(later.replace(name="stopped"), resume=True)
    assert torch.equal(weight(again.path), weight(whole.path))


def weight(run: Path) -> Tensor:
    loaded: Tensor = convnext.create_model(weights=str(run)).state_dict()["stages.0.0.dwconv.weight"]
    return loaded
