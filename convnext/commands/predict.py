"""``convnext predict``: what is in images."""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from convnext.commands.terminal import Flag, parse
from convnext.errors import SettingsError
from convnext.output import counted, say

if TYPE_CHECKING:
    from convnext.inference.predictor import Predictor
    from convnext.inference.results import Writer


@dataclass(frozen=True)
class _Predict:
    """Name what is in images: the most probable classes of each, in percent."""

    run: tyro.conf.Positional[str]
    """Folder of the run or of a checkpoint, an exported file, released weights such as convnext_tiny:in1k, or a model
    that was pushed to the Hugging Face Hub, hf:owner/name."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders, glob patterns, URLs (http, https), or - for an image on standard input."""
    top_k: int | None = None
    """Classes to show for each image; None for 5, or for 1 in a table of more than 10 images."""
    flip: Flag = False
    """Average each image's logits with those of its mirror image, at twice the cost."""
    json: Flag = False
    """Print a JSON list in place of a table."""
    csv: Flag = False
    """Print CSV in place of a table, a row a class: path, rank, class, probability."""
    save_picture: Path | None = None
    """Folder for a PNG of each image beside bars of its five most probable classes."""
    contact_sheet: Path | None = None
    """PNG to write: the images with their most probable classes, at most 64, spread over all of them."""
    explain: Path | None = None
    """Folder for a PNG of each image that shows where the model looked (pip install 'convnext[explain]')."""
    explain_method: Literal["grad-cam", "occlusion", "integrated-gradients"] = "grad-cam"
    """How that is found; an exported file takes occlusion, which covers the image square by square."""
    explain_class: str | None = None
    """The class that it looked for; None takes each image's most probable one."""
    explain_stage: int = -1
    """Stage whose feature maps grad-cam looks at: from 0, the finest, or counted from the end."""
    embed: Path | None = None
    """File for the pooled features, (N, D) in float32: .npy, with the paths beside it in .paths.txt, or .parquet."""
    checkpoint: Literal["last", "best"] | None = None
    """Which weights; None takes the last, or of a run with patience the best."""
    max_pixels: Annotated[int | None, tyro.conf.arg(name="data.max-pixels")] = None
    """Pixels above which an image counts as unreadable; None takes the run's."""
    max_value: Annotated[float | None, tyro.conf.arg(name="data.max-value")] = None
    """Value that is white in grey images of more than 8 bits; None takes the run's."""
    backend: Literal["eager", "onnxruntime", "openvino", "auto"] | None = None
    """What computes a run: PyTorch (eager, None), or on the CPU in fp32 a runtime, or the fastest (auto)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    trust: Flag = False
    """Open a .pt2, which can run code that stands in it."""


def main(args: Sequence[str]) -> int:
    """Name what is in images, with percentages."""
    options = parse(_Predict, args, "predict")
    if options.top_k is not None and options.top_k < 1:
        raise SettingsError(f"top-k: must be at least 1, got {options.top_k}")
    if options.json and options.csv:
        raise SettingsError("--json and --csv: choose one")
    if options.explain is None and (options.explain_method, options.explain_class, options.explain_stage) != (
        "grad-cam",
        None,
        -1,
    ):
        raise SettingsError("--explain-method, --explain-class and --explain-stage are for --explain FOLDER")
    if not options.images:
        raise SettingsError("which images? give files, folders, patterns, URLs, or - for standard input")
    from convnext.inference.files import expand

    predictor = _load(options)
    if options.explain is not None:
        from convnext.inference import explanations

        explanations.check(predictor.backend, options.explain_class, options.explain_method, options.explain_stage)
    paths = expand(options.images)
    predictor.warm_up(len(paths))
    standard_input = io.BytesIO(sys.stdin.buffer.read() if "-" in paths else b"")
    with ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in _writers(options, predictor, paths)]
        failures = _predict(predictor, options, paths, standard_input, writers)
    if failures:
        say(f"convnext: {failures:,} of {counted(len(paths), 'image')} could not be read")
    return 2 if failures else 0


def _load(options: _Predict) -> "Predictor":
    from convnext.config import DataSettings
    from convnext.inference.predictor import Predictor

    given: dict[str, Any] = {"max_pixels": options.max_pixels, "max_value": options.max_value}
    reading = {name: value for name, value in given.items() if value is not None}
    DataSettings(**reading)  # which refuses what is out of bounds
    predictor = Predictor.load(
        options.run, options.checkpoint, options.device, trust=options.trust, backend=options.backend
    )
    predictor.info = predictor.info.model_copy(update=reading)
    return predictor


def _writers(
    options: _Predict, predictor: "Predictor", paths: Sequence[str]
) -> "Iterator[AbstractContextManager[Writer]]":
    """What is done with each result: files as they were asked for, and one thing on standard output."""
    from convnext.commands import predictions
    from convnext.inference import results

    if options.embed is not None:
        yield results.embeddings(options.embed)
    if options.save_picture is not None:
        yield results.pictures(options.save_picture)
    if options.contact_sheet is not None:
        yield results.contact_sheet(options.contact_sheet, paths)
    if options.explain is not None:
        from convnext.inference.explanations import explain

        chosen = (options.explain_class, options.explain_method, options.explain_stage)
        yield results.explanations(options.explain, lambda picture: explain(predictor.backend, picture, *chosen))
    if options.json:
        printed = predictions.json_list(options.top_k or 5)
    elif options.csv:
        printed = predictions.csv_rows(options.top_k or 5)
    else:
        class_names = predictor.info.classes
        printed = predictions.table(paths, class_names, options.top_k or (5 if len(paths) <= predictions.FEW else 1))
    files = (options.embed, options.save_picture, options.contact_sheet, options.explain)
    yield predictions.while_read(printed) if any(file is not None for file in files) else printed


def _predict(
    predictor: "Predictor",
    options: _Predict,
    paths: Sequence[str],
    standard_input: io.BytesIO,
    writers: "Sequence[Writer]",
) -> int:
    """Give every result to the writers as it comes; returns how many images could not be read."""
    from convnext.data.progress import tracked
    from convnext.inference.results import PICTURED, PREVIEW

    drawn = options.save_picture is not None or options.contact_sheet is not None
    sources = (standard_input if path == "-" else path for path in paths)
    explained = options.explain is not None
    results = predictor.results(
        sources,
        max(options.top_k or 0, PICTURED),
        batch_size=1 if explained else 32,  # whole images are in memory then
        flip=options.flip,
        features=options.embed is not None,
        preview=PREVIEW if drawn else 0,
        pictures=explained,
    )
    failures = 0
    # A terminal shows by its rows how far it is.
    for path, result in zip(paths, tracked(results, len(paths), "predicting", not sys.stdout.isatty()), strict=True):
        if isinstance(result, Exception):
            failures += 1
            say(f"convnext: {result}")
            continue
        for write in writers:
            write(path, result)
    return failures
