"""What a model said of each image of a split, as a table."""

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from convnext.data.sources import ImageSource
from convnext.evaluation.metrics import TOP, ranked
from convnext.storage.files import writing

_AT_ONCE = 4096  # images, so that as many probabilities as there are logits need no memory


def write_predictions(
    path: Path, source: ImageSource, class_names: Sequence[str], logits: Tensor, targets: Tensor, indices: Tensor
) -> None:
    """Write a CSV file with a line an image: its path (or number), the true and the predicted class, the loss in nats,
    and the five most probable classes with their probabilities.

    Args:
        path: the file, in UTF-8; bytes of an image's path that are not are escaped.
        source: the images.
        class_names: ``K`` names.
        logits: ``(N, K)``.
        targets: ``(N,)`` class indices.
        indices: ``(N,)``, of the images in ``source``.
    """
    top = min(TOP, len(class_names))
    header = ["path", "true", "predicted", "loss"]
    header += [f"{column}_{rank}" for rank in range(1, top + 1) for column in ("class", "probability")]
    with (
        writing(path) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(header)
        for start in range(0, len(logits), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            some_logits, some_targets = logits[some], targets[some]
            best = ranked(some_logits, top)
            probabilities = some_logits.double().softmax(1).gather(1, best).tolist()
            losses = F.cross_entropy(some_logits.double(), some_targets, reduction="none").tolist()
            rows = zip(indices[some].tolist(), some_targets.tolist(), losses, best.tolist(), probabilities, strict=True)
            for index, target, loss, classes, chances in rows:
                names = [class_names[number] for number in classes]
                ranks = [text for name, chance in zip(names, chances, strict=True) for text in (name, f"{chance:.6g}")]
                table.writerow([source.image_name(index), class_names[target], names[0], f"{loss:.6g}", *ranks])
