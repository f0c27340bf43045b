"""The loss of a step, and what each class counts in it."""

import torch
from torch import Tensor, device
from torch.nn import functional as F

from convnext.config import RunSettings
from convnext.data.splits import Splits
from convnext.errors import SettingsError


def class_weights(settings: RunSettings, splits: Splits, where: device | None = None) -> Tensor | None:
    """The weight ``(K,)`` of an image of each class, whose mean over the images that an epoch draws is 1, so that the
    learning rate means what it does without, on the device ``where``; None where all count the same.

    ``"balanced"`` is scikit-learn's ``n_images / (n_classes * n_images_of_class)``. A class without training images has
    0 there, and counts in neither of the two numbers.

    Raises:
        SettingsError: another number of weights than of classes, or none above 0.
    """
    given = settings.loss.class_weights
    if given == "none":
        return None
    counts = splits.training_counts
    images = torch.tensor(counts, dtype=torch.float64)
    if given == "balanced":
        weights = torch.where(images > 0, 1 / images.clamp(min=1), 0)
    else:
        if len(given) != len(counts):
            raise SettingsError(
                f"loss.class_weights has {len(given)} numbers, and the data {len(counts)} classes: give one a class, "
                f"in the order of their names, or balanced"
            )
        weights = torch.tensor(given, dtype=torch.float64)
    drawn = (images > 0).double() if settings.data.sampler == "balanced" else images
    mean = (weights * drawn).sum() / drawn.sum()
    if not mean:
        raise SettingsError("loss.class_weights: no class with training images has a weight above 0")
    return (weights / mean).float().to(where)


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The mean cross-entropy of logits ``(n, K)``, with each image's loss times the weight of its class.

    PyTorch's ``weight`` does the same for labels. It also multiplies the classes within a smoothed or mixed target,
    and may so make a rare class a more probable answer than the true one; here the targets stay as they are, and an
    image that is mixed has the mean weight of its classes. The sum is divided by the number of images, not by the sum
    of their weights, so that micro-batches and processes add up to the gradient of the whole batch.

    Args:
        logits: of the model.
        targets: labels ``(n,)``, or fractions of each class ``(n, K)``.
        label_smoothing: fraction of each target that is spread evenly over all classes.
        weights: ``(K,)``; None where all classes count the same.
    """
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    return (losses * (weights[targets] if targets.ndim == 1 else targets @ weights)).mean()
