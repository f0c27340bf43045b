"""From logits to the numbers of a report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Report:
    """Metrics over one split; fractions are between 0 and 1.

    Attributes:
        top1: fraction of images whose most probable class is the true one.
        top5: fraction whose true class is among the five most probable (or all, where there are fewer).
        macro_f1: mean over the classes of the harmonic mean of precision and recall.
        loss: mean cross-entropy, in nats.
        count: images that were evaluated.
        per_class: class name to ``precision``, ``recall``, ``f1`` and ``support`` (images of the class).
        unreadable: images left out because they could not be decoded.
    """

    top1: float
    top5: float
    macro_f1: float
    loss: float
    count: int
    per_class: dict[str, dict[str, float]]
    unreadable: int = 0

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)


def compute_report(logits: Tensor, targets: Tensor, classes: Sequence[str], unreadable: int = 0) -> Report:
    """Metrics of predictions ``(N, K)``, N at least 1, against true labels ``(N,)`` of the K classes; ``unreadable``
    images are missing from both."""
    from sklearn.metrics import precision_recall_fscore_support

    truth, guess = targets.numpy(), logits.argmax(1).numpy()
    columns = precision_recall_fscore_support(truth, guess, labels=range(len(classes)), zero_division=0)
    per_class = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    }
    ranked = logits.topk(min(5, len(classes)), dim=1).indices == targets[:, None]
    return Report(
        top1=ranked[:, 0].double().mean().item(),
        top5=ranked.any(1).double().mean().item(),
        macro_f1=float(columns[2].mean()),
        loss=F.cross_entropy(logits.double(), targets).item(),
        count=len(targets),
        per_class=per_class,
        unreadable=unreadable,
    )


def confusion(logits: Tensor, targets: Tensor) -> Tensor:
    """Counts ``(K, K)``: row the true class, column the predicted one."""
    classes = logits.shape[1]
    return torch.bincount(targets * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
