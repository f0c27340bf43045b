"""Class weights: their numbers, their loss beside PyTorch's, and micro-batches that add up."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from convnext import recipe
from convnext.data.datasets.load import load_splits
from convnext.data.splits import Splits
from convnext.devices import make_accelerator
from convnext.errors import SettingsError
from convnext.training import gradients
from convnext.training.loss import class_weights, cross_entropy


def thinned(*counts: int) -> Splits:
    """The digits with so many training images of each class."""
    splits = load_splits(recipe("digits").data)
    of_class = [np.flatnonzero(splits.train.targets == label)[:count] for label, count in enumerate(counts)]
    return replace(splits, train=splits.train.subset(np.concatenate(of_class)))


COUNTS = (100, 50, 20, 10, 5, 3, 2, 2, 1, 1)


def weights(splits: Splits, given: Any, sampler: str = "shuffle") -> Tensor:
    made = class_weights(recipe("digits", **{"loss.class_weights": given, "data.sampler": sampler}), splits)
    assert made is not None
    return made


def test_balanced_weights_are_scikit_learns() -> None:
    splits = thinned(*COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(10), y=splits.train.targets)
    np.testing.assert_allclose(weights(splits, "balanced"), expected, rtol=1e-6)
    missing = thinned(30, 10, 0, *[5] * 7)
    expected = compute_class_weight("balanced", classes=np.delete(np.arange(10), 2), y=missing.train.targets)
    np.testing.assert_allclose(weights(missing, "balanced"), np.insert(expected, 2, 0.0), rtol=1e-6)
    assert class_weights(recipe("digits"), splits) is None


@pytest.mark.parametrize("given", ["balanced", tuple(range(10)), (3.0,) * 10])
def test_their_mean_over_the_training_images_is_one(given: Any) -> None:
    splits = thinned(*COUNTS)
    assert weights(splits, given)[splits.train.targets].mean().item() == pytest.approx(1, rel=1e-6)
    if given != "balanced":
        drawn_equally = weights(splits, given, "balanced")
        assert drawn_equally.mean().item() == pytest.approx(1, rel=1e-6)
        torch.testing.assert_close(drawn_equally / drawn_equally.sum(), torch.tensor(given) / sum(given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1.0, 2.0), "has 2 numbers, and the data 10 classes"),
        ((0.0,) * 10, "no class with training images has a weight above 0"),
        ((1.0, -1.0), r"loss\.class_weights"),
        ("balancd", r"loss\.class_weights: input should be 'none' or 'balanced'"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        weights(thinned(*COUNTS), given)
    assert "\n" not in str(error.value)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, mixed targets and weights."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    mixed = torch.rand(12, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(12) % 4
    return logits, labels, mixed / mixed.sum(1, keepdim=True), torch.tensor([0.1, 0.5, 1.0, 8.0], dtype=torch.float64)


def test_the_loss_of_labels_is_pytorchs() -> None:
    logits, labels, _, weight = batch()
    theirs = nn.CrossEntropyLoss(weight, reduction="sum")(logits, labels) / len(labels)
    torch.testing.assert_close(cross_entropy(logits, labels, weights=weight), theirs)
    one_hot = nn.functional.one_hot(labels, 4).double()
    torch.testing.assert_close(cross_entropy(logits, one_hot, weights=weight), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_equal_weights_change_nothing(smoothing: float, mixed: bool) -> None:
    logits, labels, fractions, _ = batch()
    targets = fractions if mixed else labels
    theirs = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, targets)
    assert torch.equal(cross_entropy(logits, targets, smoothing), theirs)
    torch.testing.assert_close(cross_entropy(logits, targets, smoothing, torch.ones(4, dtype=torch.float64)), theirs)


@pytest.mark.parametrize("mixed", [False, True])
def test_an_image_counts_by_its_classes_and_its_target_stays(mixed: bool) -> None:
    """So the best answer to an image of a frequent class remains that class, however rare the others are."""
    logits, labels, fractions, weight = batch()
    targets = fractions if mixed else nn.functional.one_hot(labels, 4).double()
    of_image = targets @ weight
    smoothed = 0.9 * targets + 0.1 / 4
    expected = (-(smoothed * logits.log_softmax(1)).sum(1) * of_image).mean()
    torch.testing.assert_close(cross_entropy(logits, targets if mixed else labels, 0.1, weight), expected)


@pytest.mark.parametrize("mixed", [False, True])
def test_micro_batches_add_up(mixed: bool) -> None:
    """Of 4, 4 and 3 images, with other sums of weights."""
    _, labels, fractions, weight = (tensor[:11] for tensor in batch())
    images = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    targets = fractions.float() if mixed else labels
    found = []
    for count in (1, 3):
        settings = recipe("digits", gradient_accumulation=count, precision="fp32", device="cpu")
        torch.manual_seed(0)
        model = nn.Linear(5, 4)
        tensors = (images, targets, labels)
        sums = gradients.backward(make_accelerator(settings), model, settings, tensors, 11, 11, weight.float())
        assert model.weight.grad is not None
        found.append((model.weight.grad, sums))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][0].abs().max() > 0.1
