"""A trained network that chooses which images of each batch are trained on."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.config import RunSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.runs.folder import read_metrics
from convnext.training.proxy import Proxy
from convnext.training.step import Stepper, Taken
from tests.support.stopping import stopped_after

TINY = {"depths": (1, 1), "dims": (8, 16)}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    return convnext.train(settings(tmp_path_factory.mktemp("proxy"), name="proxy"))


def settings(output: Path, **changes: Any) -> RunSettings:
    return convnext.recipe("digits", epochs=2, output=output, trackers=(), model=TINY, **changes)


def test_the_images_with_the_largest_loss_are_chosen_in_their_order() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.5, 0.0], [0.0, 0.1], [9.0, 0.0]])
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    chooser = Proxy(_Table(logits), 3, nullcontext)
    chosen, labels, others = chooser.choose(images, torch.tensor([0, 0, 0, 1, 1]), torch.arange(10.0).view(5, 2))
    assert chosen[:, 0, 0, 0].tolist() == [1, 3, 4]  # losses of 3.05, 0.64 and 9.0, before 0.47 and 0.05
    assert labels.tolist() == [0, 1, 1]
    assert others.tolist() == [[2, 3], [6, 7], [8, 9]]
    assert chosen.is_contiguous(memory_format=torch.channels_last)
    fewer, *_ = chooser.choose(images[:2], torch.tensor([0, 0]))
    assert fewer[:, 0, 0, 0].tolist() == [0, 1]


class _Table(nn.Module):
    """Logits by an image's first pixel, a row's number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


@pytest.mark.parametrize("augment_on", ["workers", "device"])
def test_each_step_takes_the_hardest_of_twice_its_images(
    proxy: convnext.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    augment_on: str,
) -> None:
    drawn, trained = list[Tensor](), list[Tensor]()
    choose, take = Proxy.choose, Stepper.take

    def chosen(own: Proxy, images: Tensor, labels: Tensor, *others: Tensor) -> list[Tensor]:
        model = convnext.create_model(weights=str(proxy.path))
        with torch.no_grad():
            drawn.append(nn.functional.cross_entropy(model(images), labels, reduction="none"))
        return choose(own, images, labels, *others)

    def taken(own: Stepper, *arguments: Any) -> Taken:
        images, _, labels = arguments[3]
        model = convnext.create_model(weights=str(proxy.path))
        with torch.no_grad():
            trained.append(nn.functional.cross_entropy(model(images), labels, reduction="none"))
        return take(own, *arguments)

    monkeypatch.setattr(Proxy, "choose", chosen)
    monkeypatch.setattr(Stepper, "take", taken)
    changes = {"augment.mix_probability": 0.0, "data.augment_on": augment_on, "precision": "fp32"}
    run = convnext.train(settings(tmp_path, batch_size=100, proxy_from=proxy.path, **changes))
    assert f"of each 200 images the 100 are trained on that the network of {proxy.path} finds" in capfd.readouterr().err
    assert len(drawn) == len(trained) == 2 * 6  # of some 1,300 training images
    assert read_metrics(run.path)[-1]["step"] == 12
    for before, after in zip(drawn, trained, strict=True):
        assert len(before) == 200
        assert torch.allclose(after.sort().values, before.sort().values[100:], atol=1e-4)


def test_a_run_goes_on_exactly_without_the_network_it_began_with(
    proxy: convnext.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(proxy.path, tmp_path / "small", symlinks=True)
    monkeypatch.chdir(tmp_path)
    with_proxy = settings(tmp_path, proxy_from=Path("small"), proxy_keep=0.4, save_every_steps=3)
    whole = convnext.train(with_proxy.replace(name="whole"))
    plain = convnext.train(settings(tmp_path, name="plain"))
    assert not torch.equal(head(whole.path), head(plain.path))
    with stopped_after(4):
        convnext.train(with_proxy.replace(name="stopped"))
    shutil.rmtree(tmp_path / "small")
    again = convnext.train(resume=tmp_path / "stopped")
    assert torch.equal(head(again.path), head(whole.path))


def head(run: Path) -> Tensor:
    loaded: Tensor = convnext.create_model(weights=str(run)).state_dict()["head.weight"]
    return loaded


def test_what_does_not_fit_is_refused_and_leaves_nothing(
    proxy: convnext.Run, small_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    with pytest.raises(CheckpointError, match=r"run folder .*nowhere is not there"):
        convnext.train(settings(output, proxy_from=tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match=rf"{proxy.path} was trained with mean .* train both on the same images"):
        convnext.train(settings(output, proxy_from=proxy.path, **{"data.mean": (0.5,), "data.std": (0.2,)}))
    folder = {"data.name": "folder", "data.root": small_folder, "data.mean": (0.5,) * 3, "data.std": (0.2,) * 3}
    with pytest.raises(CheckpointError, match=rf"{proxy.path} knows 10 classes and the data has 3"):
        convnext.train(settings(output, proxy_from=proxy.path, batch_size=8, **folder))
    with pytest.raises(SettingsError, match=r"for 1000 images 2000 are drawn, and there are 1293 training images"):
        convnext.train(settings(output, proxy_from=proxy.path, batch_size=1000))
    assert not list(output.glob("*/*"))
