"""The report's numbers, against counting by hand."""

import shutil
from pathlib import Path

import pytest
import torch

import convnext
from convnext.evaluation.evaluator import FlipAverage
from convnext.evaluation.metrics import compute_report

CLASSES = ("a", "b", "c", "d", "e", "f")


def test_report_counts() -> None:
    targets = torch.tensor([0, 0, 1, 1, 2, 5])
    ranked = torch.tensor([[0, 1], [1, 0], [1, 0], [1, 0], [2, 0], [0, 1]])  # best and second best class
    logits = torch.zeros(6, 6)
    logits[:, 5] = -1  # class f is always the last: the true one of the last image is not among five
    logits.scatter_(1, ranked[:, :1], 3.0)
    logits.scatter_(1, ranked[:, 1:], 2.0)
    report = compute_report(logits, targets, CLASSES, unreadable=2)
    assert report.top1 == pytest.approx(4 / 6)
    assert report.top5 == pytest.approx(5 / 6)
    assert report.count == 6
    assert report.unreadable == 2
    assert report.per_class["b"] == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1": 0.8, "support": 2}
    assert report.per_class["f"]["recall"] == 0
    assert report.macro_f1 == pytest.approx((0.5 + 0.8 + 1 + 0) / 4)  # d and e occur nowhere
    chances = logits.softmax(1)[torch.arange(6), targets]
    assert report.loss == pytest.approx(-chances.log().mean().item(), rel=1e-5)
    assert report.confusion == {"a": {"a": 1, "b": 1}, "b": {"b": 2}, "c": {"c": 1}, "f": {"a": 1}}
    assert report.most_confused == [
        {"true": "f", "predicted": "a", "count": 1, "support": 1},
        {"true": "a", "predicted": "b", "count": 1, "support": 2},
    ]


def test_fewer_than_five_classes() -> None:
    report = compute_report(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]), ("no", "yes"))
    assert (report.top1, report.top5) == (0.5, 1.0)


def test_flip_judges_an_image_and_its_mirror_image(digits_run: convnext.Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits_run.path, run)
    before = (run / "test_report.json").read_text()
    report = convnext.evaluate(run, flip=True)
    assert (run / "test-flip_report.json").exists()
    assert (run / "test_report.json").read_text() == before
    # A mirrored 3 is no 3, so that the digits lose by it.
    assert 0.3 < report.top1 < digits_run.report.top1
    images = torch.rand(2, 1, 8, 8)
    model = FlipAverage(torch.nn.Flatten())
    expected = torch.stack([images, images.flip(-1)]).mean(0).flatten(1)
    assert torch.equal(model(images), expected)
