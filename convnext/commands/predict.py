"""``convnext predict``: what is in images."""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from convnext.commands.terminal import Flag, Table, parse, print_table
from convnext.errors import SettingsError
from convnext.output import say


@dataclass(frozen=True)
class _Predict:
    """Name what is in images: the most probable classes of each, in percent."""

    run: tyro.conf.Positional[str]
    """Folder of the run or of a checkpoint, an exported file, or released weights such as convnext_tiny:in1k."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders, glob patterns, or - for an image on standard input."""
    top_k: int = 5
    """Classes to show for each image."""
    checkpoint: Literal["last", "best"] | None = None
    """Which weights; None takes the last, or of a run with patience the best."""
    max_pixels: Annotated[int | None, tyro.conf.arg(name="data.max-pixels")] = None
    """Pixels above which an image counts as unreadable; None takes the run's."""
    max_value: Annotated[float | None, tyro.conf.arg(name="data.max-value")] = None
    """Value that is white in grey images of more than 8 bits; None takes the run's."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    trust: Flag = False
    """Open a .pt2, which can run code that stands in it."""
    json: Flag = False
    """Print a JSON list in place of tables."""


def main(args: Sequence[str]) -> int:
    """Name what is in images, with percentages."""
    options = parse(_Predict, args, "predict")
    if options.top_k < 1:
        raise SettingsError(f"top-k: must be at least 1, got {options.top_k}")
    if not options.images:
        raise SettingsError("which images? give files, folders, patterns, or - for standard input")
    from convnext.config import DataSettings
    from convnext.data.progress import tracked
    from convnext.inference.files import expand
    from convnext.inference.predictor import Predictor

    given: dict[str, Any] = {"max_pixels": options.max_pixels, "max_value": options.max_value}
    reading = {name: value for name, value in given.items() if value is not None}
    DataSettings(**reading)  # which refuses what is out of bounds
    predictor = Predictor.load(options.run, options.checkpoint, options.device, trust=options.trust)
    predictor.info = predictor.info.model_copy(update=reading)
    paths = expand(options.images)
    sources = (io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path for path in paths)
    predictions, failures = [], 0
    results = tracked(predictor.batches(sources, options.top_k), len(paths), "predicting")
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Exception):
            failures += 1
            say(f"convnext: {result}")
        else:
            predictions.append((path, result))
    if options.json:
        keys = ("class", "probability")
        lists = [(path, [dict(zip(keys, one, strict=True)) for one in best]) for path, best in predictions]
        print(json.dumps([{"path": path, "predictions": best} for path, best in lists]))
    elif predictions:
        rows = Table("image", *(f"{rank}." for rank in range(1, len(predictions[0][1]) + 1)))
        for path, best in predictions:
            rows.add_row(path, *(f"{name} {100 * probability:.1f} %" for name, probability in best))
        print_table(rows)
    return 2 if failures else 0
