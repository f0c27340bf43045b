"""Every file that `convnext export` makes of a run, beside the run: the class of photographs, and the whole test split.

What a format does not have is named and left out. The source is the run's model in PyTorch, in fp32. A file with
pre-processing inside gets the whole of a JPEG, where the source has a large one decoded at a fraction of its size: it
is compared once with the source as it is, and once (alike) with the source on JPEGs decoded as a whole.

    OMP_NUM_THREADS=1 python benchmarks/formats.py RUN PHOTOGRAPHS --root DIR
"""

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from command import run_command
from numpy.typing import NDArray

from convnext.data.images import Picture
from convnext.data.sources import ImageSource
from convnext.errors import SettingsError
from convnext.evaluation.images import choose_images
from convnext.evaluation.metrics import compute_report
from convnext.inference.backends import Backend, logits_of
from convnext.inference.export.export import FORMATS, export
from convnext.inference.exported import compute_logits
from convnext.inference.files import expand
from convnext.inference.predictor import Predictor
from convnext.inference.preparation import prepare
from convnext.runs import checkpoint as checkpoints
from convnext.runs.folder import home

BATCH = 32
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Result:
    """What a backend makes of the photographs, logits ``(N, K)``, also of those decoded as a whole, and of the test."""

    logits: NDArray[np.float32]
    decoded: NDArray[np.float32]
    top1: float
    macro_f1: float


def measure(backend: Backend, paths: list[str], test: ImageSource) -> Result:
    """Both, of one backend."""
    channels = backend.info.channels
    pictures = [Picture.open(path, channels) for path in paths]
    whole = [Picture(picture.decode(), channels) for picture in pictures]
    logits, decoded = (
        np.concatenate(
            [
                logits_of(backend, [prepare(picture, backend) for picture in each[start : start + BATCH]])
                for start in range(0, len(each), BATCH)
            ]
        )
        for each in (pictures, whole)
    )
    predictions = compute_logits(backend, test, title=None)
    report = compute_report(predictions.logits, predictions.targets, backend.info.classes)
    return Result(logits, decoded, report.top1, report.macro_f1)


def row(source: Result, other: Result, products: tuple[int, int] | None) -> dict[str, float]:
    """The numbers of a file beside its source."""
    numbers: dict[str, float] = {}
    for kind, theirs, ours in (("", other.logits, source.logits), ("alike_", other.decoded, source.decoded)):
        numbers[f"{kind}other_class"] = int((ours.argmax(1) != theirs.argmax(1)).sum())
        numbers[f"{kind}difference"] = round(float(np.abs(ours - theirs).max()), 5)
    numbers |= {
        "top1": other.top1,
        "macro_f1": other.macro_f1,
    }
    return numbers | ({} if products is None else {"int8_products": products[0], "products": products[1]})


def main() -> None:
    """Export, measure, and print a table and the numbers of a ``run.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("--root", type=Path, help="of the run's data, where that has moved")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    options = parser.parse_args()
    paths = expand(options.photographs)
    predictor = Predictor.load(options.run, device="cpu")
    folder = checkpoints.find(options.run)
    recorded, data = checkpoints.read_fingerprints(folder), home(folder)[1].data
    test = choose_images(options.run, folder, recorded, predictor.info, data, "test", options.root).source
    source = measure(predictor.backend, paths, test)
    print(
        f"{len(paths)} photographs, {len(test):,} test images, source {100 * source.top1:.2f} % {source.macro_f1:.4f}\n"
    )
    print("| file | another class | logits differ by | alike | test top-1 | points lost | macro-F1 | int8 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    numbers: dict[str, float] = {"photographs": len(paths), "source_top1": source.top1}
    numbers |= {"source_macro_f1": source.macro_f1, "largest_logit": round(float(np.abs(source.logits).max()), 3)}
    for name, precision, inside in product(FORMATS, options.precisions, (False, True)):
        title = f"{name} {precision}{' inside' if inside else ''}"
        with tempfile.TemporaryDirectory() as target:
            path = Path(target) / f"model{FORMATS[name].suffix}"
            try:
                made = export(
                    options.run,
                    name,
                    precision=precision,
                    output=path,
                    include_preprocessing=inside,
                    max_drop=math.inf,
                    root=options.root,
                )
            except SettingsError as error:
                print(f"left out: {title}: {error}")
                continue
            other = measure(Predictor.load(path, device="cpu", trust=True).backend, paths, test)
        values = row(source, other, made.products)
        numbers |= {f"{title.replace(' ', '_')}_{key}": value for key, value in values.items()}
        int8 = "{} of {}".format(*made.products) if made.products else ""
        print(
            f"| {title} | {values['other_class']} | {values['difference']:.2g} | {values['alike_other_class']}, "
            f"{values['alike_difference']:.2g} | {100 * other.top1:.2f} % | "
            f"{100 * (source.top1 - other.top1):.2f} | {other.macro_f1:.4f} | {int8} |",
            flush=True,
        )
    print(json.dumps(numbers))


if __name__ == "__main__":
    run_command(main)
