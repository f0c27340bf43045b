"""From logits to the numbers of a report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional as F

TOP = 5  # classes that count as an answer for `Report.top5`
_PAIRS = 20  # of classes that are confused, in a report


@dataclass(frozen=True)
class Report:
    """Metrics over one split; fractions are between 0 and 1.

    Attributes:
        top1: fraction of images whose most probable class is the true one.
        top5: fraction whose true class is among the five most probable (or all, where there are fewer).
        macro_f1: mean over the classes of the harmonic mean of precision and recall; as scikit-learn's default, over
            those classes that occur among the true or the predicted ones.
        loss: mean cross-entropy, in nats.
        count: images that were evaluated.
        per_class: class name to ``precision``, ``recall``, ``f1`` and ``support`` (images of the class).
        unreadable: images left out because they could not be decoded.
        confusion: images by true class and predicted class, without zeros.
    """

    top1: float
    top5: float
    macro_f1: float
    loss: float
    count: int
    per_class: dict[str, dict[str, float]]
    unreadable: int = 0
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def most_confused(self) -> list[dict[str, Any]]:
        """The most frequent mistakes: ``count`` of the ``support`` images of the class ``true`` were taken for
        ``predicted``."""
        pairs: list[dict[str, Any]] = [
            {"true": true, "predicted": predicted, "count": count, "support": sum(row.values())}
            for true, row in self.confusion.items()
            for predicted, count in row.items()
            if predicted != true
        ]
        return sorted(pairs, key=lambda pair: (-pair["count"], pair["support"]))[:_PAIRS]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready copy, with the most confused classes."""
        values = asdict(self)
        return values | {"most_confused": self.most_confused, "confusion": values.pop("confusion")}


def ranked(logits: Tensor, count: int = 1) -> Tensor:
    """The most probable classes, best first, of equal ones the lower index: every count of what is right comes from
    this.

    Args:
        logits: ``(N, K)``.
        count: how many classes, at most K.

    Returns:
        Class indices ``(N, count)``.
    """
    if count == 1:  # the first of equals, without waiting for the device
        return logits.argmax(1, keepdim=True)
    values, best = logits.topk(min(count + 1, logits.shape[1]), dim=1)
    tied = ~(values[:, 1:] < values[:, :-1]).all(1)  # there topk takes any; a nan is never less
    best[tied] = logits[tied].sort(dim=1, descending=True, stable=True).indices[:, : best.shape[1]]
    return best[:, :count]


def compute_report(logits: Tensor, targets: Tensor, classes: Sequence[str], unreadable: int = 0) -> Report:
    """Metrics of predictions ``(N, K)``, N at least 1, against true labels ``(N,)`` of the K classes; ``unreadable``
    images are missing from both."""
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    best = ranked(logits, min(TOP, len(classes)))
    hits = best == targets[:, None]
    truth, guess = targets.numpy(), best[:, 0].numpy()
    columns = precision_recall_fscore_support(truth, guess, labels=range(len(classes)), zero_division=0)
    per_class = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    }
    return Report(
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(1).double().mean().item(),
        macro_f1=float(f1_score(truth, guess, average="macro")),
        loss=F.cross_entropy(logits.double(), targets).item(),
        count=len(targets),
        per_class=per_class,
        unreadable=unreadable,
        confusion=_confusion(targets, best[:, 0], classes),
    )


def _confusion(targets: Tensor, guesses: Tensor, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    confusion: dict[str, dict[str, int]] = {}
    pairs = Counter(zip(targets.tolist(), guesses.tolist(), strict=True))
    for (true, predicted), count in sorted(pairs.items()):
        confusion.setdefault(classes[true], {})[classes[predicted]] = count
    return confusion


def most_confident_mistakes(logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """Rows of at most ``count`` wrong predictions of ``(N, K)`` logits, the most probable one first; ``targets`` are
    ``(N,)`` class indices."""
    wrong = (ranked(logits)[:, 0] != targets).nonzero()[:, 0]
    probabilities = logits[wrong].softmax(1).amax(1)
    return wrong[probabilities.sort(descending=True, stable=True).indices[:count]]
