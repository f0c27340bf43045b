"""Modules and data sets of a program's own: exact after an interruption, and refused where they do not fit."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import convnext
from convnext.config import DataSettings, RunSettings
from convnext.data.datasets.own import own_splits
from convnext.data.loading.loader import Batch
from convnext.errors import SettingsError, UserError
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.trainer import Trainer


class Squares(Dataset[Any]):
    """Bright squares on the left or on the right, as Pillow images or tensors."""

    classes = ("left", "right")

    def __init__(self, count: int, tensors: bool = False, shift: int = 0) -> None:
        self.count, self.tensors, self.shift = count, tensors, shift

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]:
        if index >= self.count:
            raise IndexError
        pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
        label = index % 2
        pixels[:, 2:6, 4 * label : 4 * label + 4] = 100 + index % 100
        return pixels if self.tensors else Image.fromarray(pixels.permute(1, 2, 0).numpy()), label + self.shift


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ("digits", {"epoch": 1}, "no setting is called epoch: did you mean epochs"),
        ("digits", {"lr": 1}, r"no setting is called lr: did you mean optimizer\.lr"),
        ("digits", {"model": "convnext_tiny"}, r"model is a torch\.nn\.Module, got 'convnext_tiny': .*'model\.name'"),
        ("folder", {"data": "my_images"}, r"data has data sets by split, got 'my_images': .*'data\.root'"),
        (RunSettings(), {"epochs": 1}, "epochs: changes go with a recipe's name"),
    ],
)
def test_changes_of_a_recipe_go_into_train(settings: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        convnext.train(settings, **changes)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


def settings(output: Path, **changes: Any) -> RunSettings:
    usual = {"epochs": 3, "batch_size": 16, "trackers": (), "output": output, "augment.flip": 0.0, "data.workers": 0}
    return convnext.recipe("digits", **(usual | changes))


def test_images_and_tensors_are_the_same_images(tmp_path: Path) -> None:
    reports = [
        convnext.train(
            settings(tmp_path / str(tensors), epochs=20, **{"optimizer.lr": 0.02}),
            model=model(),
            data={"train": Squares(100, tensors)},
        ).report
        for tensors in (False, True)
    ]
    assert reports[0] == reports[1]
    assert reports[0].count == 20
    assert reports[0].top1 > 0.9


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"train": Subset(Squares(120), range(80)), "val": Squares(20), "test": Squares(30)}
    options: dict[str, Any] = {"data": data, "class_names": ("left", "right")}
    whole = convnext.train(settings(tmp_path / "whole"), model=model(), **options)
    step = Trainer.step

    def stop_at_the_seventh(trainer: Trainer, batch: Batch, signals: StopSignals) -> tuple[bool, bool]:
        if trainer.state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch, signals)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop_at_the_seventh)
        with pytest.raises(InterruptedRunError):
            convnext.train(settings(tmp_path / "cut"), model=model(), **options)
    cut = convnext.train(settings(tmp_path / "cut", **{"data.workers": 2}), model=model(), resume=True, **options)
    weights = [run.path / "checkpoints" / "last" / "model.safetensors" for run in (whole, cut)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert cut.report == whole.report


def test_other_images_are_noticed(tmp_path: Path) -> None:
    convnext.train(settings(tmp_path), model=model(), data={"train": Squares(100)})
    with pytest.raises(UserError, match="have changed"):
        convnext.train(settings(tmp_path), model=model(), data={"train": Squares(102)}, resume=True)


@pytest.mark.parametrize(
    ("module", "data", "complaint"),
    [
        (nn.Flatten(), {"train": Squares(100)}, r"from 2 images it gives \(2, 192\), and should give \(2, 2\)"),
        (nn.Linear(3, 2), {"train": Squares(100)}, r"does not take images \(2, 3, 8, 8\)"),
        (None, {"training": Squares(100)}, "needs 'train'"),
        (None, {"train": Squares(100, shift=1)}, "labels up to 2, and 2 class names"),
        (None, {"train": Subset(Squares(100), range(50))}, "give the names of its labels"),
    ],
)
def test_what_does_not_fit_is_one_line(
    module: nn.Module | None, data: dict[str, Dataset[Any]], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        convnext.train(settings(tmp_path), model=module, data=data)
    assert not list(tmp_path.iterdir())


def test_items_that_are_no_images_are_named(tmp_path: Path) -> None:
    class Floats(Squares):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            assert isinstance(image, Tensor)
            return image / 255, label

    with pytest.raises(UserError, match=r"train\[\d+\] is torch.float32 \(3, 8, 8\): give a Pillow image, or a uint8"):
        convnext.train(settings(tmp_path), model=model(), data={"train": Floats(100, tensors=True)})


class Grey(Squares):
    """Of which the first ten are grey, and the others `Squares`."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        assert isinstance(image, Image.Image)
        return (image.convert("L") if index < 10 else image), label


def test_one_grey_image_says_nothing_of_the_others() -> None:
    splits = own_splits({"train": Grey(100)}, None, DataSettings())
    assert splits.channels == 3
    assert splits.train.load(0).mode == "RGB"
    assert own_splits({"train": Grey(10)}, None, DataSettings()).channels == 1


@pytest.mark.parametrize("subset", [False, True])
def test_labels_are_those_after_a_transform(subset: bool) -> None:
    images = FakeTargets(40)
    train: Dataset[Any] = Subset(images, range(10, 40)) if subset else images
    splits = own_splits({"train": train}, ("right", "left"), DataSettings(val_fraction=0))
    for source in (splits.train, splits.test):
        for index in range(len(source)):
            source.load(index)  # which compares the labels
    first = 10 if subset else 0
    labels = np.concatenate([splits.train.targets, splits.test.targets])
    assert sorted(labels.tolist()) == sorted((index + 1) % 2 for index in range(first, 40))


class FakeTargets(Squares):
    """With raw labels, as torchvision has them."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.targets = [index % 2 for index in range(count)]

    def target_transform(self, label: int) -> int:
        return 1 - label

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image, self.target_transform(label)


def test_labels_that_change_are_named(tmp_path: Path) -> None:
    class Changing(FakeTargets):
        def __getitem__(self, index: int) -> Any:
            image, label = Squares.__getitem__(self, index)
            return image, label  # not as the transform has it

    with pytest.raises(UserError, match=r"train\[\d+\] had label \d when all labels were read, and now has \d"):
        convnext.train(settings(tmp_path), data={"train": Changing(100)})


@pytest.mark.parametrize(
    ("options", "changes", "complaint"),
    [
        ({"model": model()}, {"model.weights": "in1k"}, "model.weights in1k: a module of one's own starts from"),
        ({"model": model()}, {"model.weights": "runs/digits"}, "model.weights runs/digits: a module of one's own"),
        ({"data": {"train": Squares(100)}}, {"data.exclude": "exclude.txt"}, "data.exclude names files"),
        ({"data": {"train": Squares(100)}}, {"data.cache": "disk"}, "data.cache disk: .*leave data.cache out"),
    ],
)
def test_settings_that_would_be_without_effect_are_refused(
    options: dict[str, Any], changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    given = convnext.recipe("digits", output=tmp_path).replace(**changes)
    with pytest.raises(SettingsError, match=complaint):
        convnext.train(given, **options)
    assert not list(tmp_path.iterdir())
    if "in1k" in complaint:
        with pytest.raises(SettingsError, match=complaint):
            convnext.train("folder", output=tmp_path, **options, **changes)
