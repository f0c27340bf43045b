"""One count of what is right: every number of a report, and a run's own beside those of `convnext evaluate`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, recall_score
from torch import Tensor, nn
from torch.utils.data import Dataset

import convnext
from convnext.data.sources import ArraySource, FileSource
from convnext.evaluation.metrics import Report, compute_report, most_confident_mistakes, ranked
from convnext.evaluation.predictions import write_predictions
from convnext.models import registry
from convnext.models.classifier import Classifier, classify_in_full_precision
from convnext.plots import predictions
from convnext.runs.folder import read_metrics

CLASSES = 120


class Noisy(Dataset[Any]):
    """So many images of each of 120 classes, which are hard to tell apart."""

    classes = tuple(f"class {number}" for number in range(CLASSES))

    def __init__(self, per_class: int, seed: int) -> None:
        colours = np.random.default_rng(0).integers(0, 256, (CLASSES, 3, 2, 2))
        noise = np.random.default_rng(seed).normal(0, 40, (per_class, CLASSES, 3, 8, 8))
        images = (colours.repeat(4, 2).repeat(4, 3) + noise).clip(0, 255).astype(np.uint8)
        self.images = torch.from_numpy(images).flatten(0, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % CLASSES


def settings(output: Path, **changes: Any) -> convnext.RunSettings:
    """One epoch on such images."""
    changes |= {"epochs": 1, "batch_size": 40, "data.val_fraction": 0.0, "optimizer.lr": 0.01, "augment.flip": 0.0}
    return convnext.recipe("digits", output=output, trackers=(), **changes)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def right_everywhere(run: Path, report: Report) -> list[float]:
    """How many images are right, by each of the numbers that say so."""
    rows = read_rows(run / "test_predictions.csv")
    stored = json.loads((run / "test_report.json").read_text())
    return [
        report.top1 * report.count,
        sum(row.get(true, 0) for true, row in report.confusion.items()),
        sum(row.get(true, 0) for true, row in stored["confusion"].items()),
        sum(values["recall"] * values["support"] for values in report.per_class.values()),
        sum(row["true"] == row["predicted"] == row["class_1"] for row in rows),
    ]


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures, which take most of the time, to their own tests."""
    for picture in ("confusion_matrix", "prediction_grid"):
        monkeypatch.setattr(predictions, picture, lambda *_: None)


@pytest.mark.parametrize("model", [{"depths": (1, 1), "dims": (8, 32)}, {"name": "resnet18", "patch_size": 1}])
@pytest.mark.usefixtures("without_pictures")
def test_a_run_in_bf16_counts_once_and_as_evaluate_does(tmp_path: Path, model: dict[str, Any]) -> None:
    data = {"train": Noisy(4, 1), "test": Noisy(3, 2)}
    run = convnext.train(settings(tmp_path, precision="bf16", model=model), data=data)
    assert 0 < run.report.top1 <= run.report.top5 < 1
    counts = right_everywhere(run.path, run.report)
    assert counts == pytest.approx([counts[1]] * 5)
    assert convnext.evaluate(run.path, data=data) == run.report
    assert right_everywhere(run.path, run.report) == counts


def half_precision_logits() -> tuple[Tensor, Tensor]:
    """Logits of few values, so that most rows have ties, some for the first rank, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3000, 200, generator=generator) * 4).round() / 4
    return logits.bfloat16().float(), torch.randint(200, (3000,), generator=generator)


def test_of_equal_logits_the_first_class_is_the_answer() -> None:
    logits, targets = half_precision_logits()
    by_hand = torch.tensor([sorted(range(200), key=lambda k: (-row[k], k))[:5] for row in logits.tolist()])
    assert torch.equal(ranked(logits, 5), by_hand)
    assert torch.equal(ranked(logits), by_hand[:, :1])
    assert (logits.topk(5).indices != by_hand).any()  # which is why it is not topk
    report = compute_report(logits, targets, [str(k) for k in range(200)])
    assert report.top1 == (by_hand[:, 0] == targets).double().mean().item()
    assert report.top5 == (by_hand == targets[:, None]).any(1).double().mean().item()
    assert ranked(torch.zeros(2, 3), 3).tolist() == [[0, 1, 2]] * 2


def test_logits_that_are_not_numbers_are_not_right_answers() -> None:
    logits = torch.full((4, 6), float("nan"))
    assert compute_report(logits, torch.tensor([5, 5, 5, 5]), "abcdef").top5 == 0


def test_macro_f1_is_that_of_scikit_learn() -> None:
    logits, targets = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 7
    logits[:, 20:] -= 9  # classes that occur nowhere
    report = compute_report(logits, targets, [str(k) for k in range(40)])
    guesses = logits.argmax(1)
    assert report.macro_f1 == f1_score(targets, guesses, average="macro")
    occurring = [v for v in report.per_class.values() if v["support"] or v["f1"]]
    assert len(occurring) == 7 < len(set(guesses.tolist()) | set(range(7)))
    recalls = recall_score(targets, guesses, labels=range(40), average=None, zero_division=0)
    assert [values["recall"] for values in report.per_class.values()] == recalls.tolist()


def test_the_most_confused_pairs_come_first() -> None:
    targets = torch.tensor([0] * 5 + [1] * 4 + [2] * 9)
    guesses = torch.tensor([1, 1, 1, 0, 2] + [1, 1, 1, 0] + [0, 0, 0] + [2] * 6)
    report = compute_report(nn.functional.one_hot(guesses, 3).float(), targets, ("cat", "dog", "cow"))
    assert report.most_confused == [
        {"true": "cat", "predicted": "dog", "count": 3, "support": 5},
        {"true": "cow", "predicted": "cat", "count": 3, "support": 9},
        {"true": "dog", "predicted": "cat", "count": 1, "support": 4},
        {"true": "cat", "predicted": "cow", "count": 1, "support": 5},
    ]
    assert json.loads(json.dumps(report.as_dict()))["most_confused"] == report.most_confused


def test_the_most_confident_mistakes_come_first() -> None:
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 9.0], [5.0, 0.0], [1.0, 0.0]])
    targets = torch.tensor([1, 1, 1, 1, 1])
    assert most_confident_mistakes(logits, targets, 9).tolist() == [3, 0, 1, 4]
    assert most_confident_mistakes(logits, targets, 2).tolist() == [3, 0]
    assert most_confident_mistakes(logits[:1], targets[:1] - 1, 9).tolist() == []


def test_a_table_of_predictions_is_well_formed_for_any_name(tmp_path: Path) -> None:
    names = ["plain", 'with "quotes", commas', "two\nlines", "猫", "=1+1", "\r"]
    paths = [b"a/b.png", b'a "b", c.png', b"new\nline.png", "猫.png".encode(), b"latin-\xe9.png", b"z.png"]
    targets = torch.arange(6)
    source = FileSource(np.array(paths), targets.numpy(), channels=3, root=Path("root"))
    logits = torch.eye(6).flip(1) * 4
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    write_predictions(tmp_path / "p.csv", source, names, logits[order], targets[order], order)
    rows = read_rows(tmp_path / "p.csv")
    assert [row["true"] for row in rows] == names[::-1]
    assert [row["predicted"] for row in rows] == names == [row["class_1"] for row in rows]
    assert [row["path"] for row in rows[2:]] == [f"root/{path.decode()}" for path in paths[3::-1]]
    assert rows[1]["path"] == r"root/latin-\udce9.png"
    probabilities = logits[order].softmax(1)
    for row, label, ours in zip(rows, order, probabilities, strict=True):
        assert float(row["loss"]) == pytest.approx(-ours[label].log().item(), rel=1e-4)
        assert [float(row[f"probability_{rank}"]) for rank in range(1, 6)] == pytest.approx(
            ours.sort(descending=True).values[:5].tolist(), rel=1e-4
        )
    assert list(rows[0])[:5] == ["path", "true", "predicted", "loss", "class_1"]


def test_a_table_of_two_classes_has_two_ranks(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((1, 2, 2), np.uint8), np.zeros(1, np.int64), channels=1)
    one = torch.zeros(1, dtype=torch.int64)
    write_predictions(tmp_path / "p.csv", source, ("no", "yes"), torch.zeros(1, 2), one, one)
    (row,) = read_rows(tmp_path / "p.csv")
    assert list(row.values()) == ["#0", "no", "no", "0.693147", "no", "0.5", "yes", "0.5"]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: convnext.create_model("convnext_atto", num_classes=100),
    "roadmap": lambda: registry.build(registry.resolve(convnext.ModelSettings(name="roadmap", depths=(1,))), 100),
    "resnet18": lambda: convnext.create_model("resnet18", num_classes=100),
    "torchvision": lambda: convnext.create_model("torchvision:mobilenet_v3_small", num_classes=100),
    "timm": lambda: convnext.create_model("timm:test_vit", num_classes=100),
    "own": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 160**2, 100), nn.GELU(), nn.Linear(100, 100)),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_of_full_precision_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    weights, images = model.state_dict(), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        before = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(images).dtype == torch.bfloat16
            classify_in_full_precision(model, 100)
            assert model(images).dtype == torch.float32
        assert torch.equal(model(images), before)
    assert [type(module) for module in model.modules()].count(Classifier) == 1
    assert model.state_dict().keys() == weights.keys()
    assert next(model.double().parameters()).dtype == model(images.double()).dtype


class Undecided(nn.Module):
    """A model for which all classes are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 0 * self.layer(images.flatten(1))
        return logits


@pytest.mark.usefixtures("without_pictures")
def test_the_running_accuracy_of_training_is_counted_alike(tmp_path: Path) -> None:
    data = {"train": Noisy(4, 1), "test": Noisy(3, 2)}
    run = convnext.train(settings(tmp_path), model=Undecided(), data=data)
    assert read_metrics(run.path)[-1]["train_top1"] == pytest.approx(1 / CLASSES)
    assert run.report.top1 == pytest.approx(1 / CLASSES)
    assert run.report.top5 == pytest.approx(5 / CLASSES)
    assert {row for true in run.report.confusion.values() for row in true} == {"class 0"}
