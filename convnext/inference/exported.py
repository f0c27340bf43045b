"""An exported file, or any backend, over the images of a split."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnext.data.images import UnreadableImageError
from convnext.data.progress import tracked
from convnext.data.sources import ImageSource
from convnext.errors import DataError, SettingsError
from convnext.evaluation.evaluator import SplitLogits, Subject, report_on
from convnext.evaluation.images import choose_images
from convnext.evaluation.metrics import Report
from convnext.inference.backends import Backend, Images, logits_of, open_file
from convnext.inference.preparation import prepare
from convnext.runs import checkpoint as checkpoints
from convnext.runs.folder import home
from convnext.weights.files import usual_checkpoint
from convnext.weights.model_info import ModelInfo


def compute_logits(
    backend: Backend, source: ImageSource, batch_size: int = 32, flip: bool = False, title: str | None = "evaluating"
) -> SplitLogits:
    """The logits of every image of ``source``, in order.

    Args:
        backend: what computes them.
        source: the images.
        batch_size: images at a time.
        flip: average each image's logits with those of its mirror image.
        title: of the progress; None for none.

    Raises:
        DataError: no image can be read.
    """
    logits: list[NDArray[np.float32]] = []
    indices, unreadable = list[int](), list[str]()
    chunks = [range(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    with ThreadPoolExecutor() as threads:
        for chunk in tracked(chunks, len(chunks), title or "", shown=title is not None):
            loaded = list(_loaded(backend, source, chunk, threads))
            unreadable += [item for _, item in loaded if isinstance(item, str)]
            readable = [(index, item) for index, item in loaded if not isinstance(item, str)]
            if readable:
                logits.append(logits_of(backend, [image for _, image in readable], flip))
                indices += [index for index, _ in readable]
    if not indices:
        raise DataError(f"none of the {len(source)} images can be read; the first: {unreadable[0]}")
    rows = torch.tensor(indices)
    targets = torch.from_numpy(source.targets)[rows]
    return SplitLogits(torch.from_numpy(np.concatenate(logits)), targets, rows, unreadable)


def _loaded(
    backend: Backend, source: ImageSource, indices: Iterable[int], threads: ThreadPoolExecutor
) -> Iterator[tuple[int, Images | str]]:
    """Each image by its index, or a line on why it cannot be read."""

    def load(index: int) -> tuple[int, Images | str]:
        try:
            return index, prepare(source.picture(index), backend)
        except UnreadableImageError as error:
            return index, str(error)

    return threads.map(load, indices)


def open_exported(
    path: Path,
    *,
    split: str | None = None,
    root: Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
    flip: bool = False,
    trust: bool = False,
    backend: str | None = None,
) -> Subject:
    """An exported file, to evaluate; its report goes beside it.

    Args:
        path: the file.
        split: as of `convnext.evaluate`.
        root: the folder of the images, which a file does not know; None for a data set that has a place of its own.
        batch_size: images at a time.
        device: where PyTorch computes, for a ``.pt2``.
        flip: judge each image together with its mirror image.
        trust: as of `convnext.inference.backends.open_file`.
        backend: as there.

    Raises:
        UserError: a file that cannot be used, or images that are missing or of other classes.
    """
    opened = open_file(path, device, trust, backend=backend)
    export = opened.export
    choose = partial(choose_images, path, path, export.fingerprints, export.model, export.data)
    source, stem, suffix = choose(split, root)
    stem = f"{path.stem}_{stem}{'-flip' if flip else ''}{suffix}"
    own = None if suffix else root
    return Subject(
        path,
        path.parent,
        stem,
        source,
        export.model,
        lambda name: choose(name, own).source,
        _logits(opened, batch_size, flip),
        flexible=False,
    )


def open_on(
    backend: Backend,
    checkpoint: Path,
    *,
    split: str | None = None,
    root: Path | None = None,
    batch_size: int = 32,
    flip: bool = False,
) -> Subject:
    """A checkpoint's folder on the backend that `convnext.inference.runtimes.open_runtime` opened for it, to evaluate;
    the report goes into its run's folder, with the backend in its name. For the rest see `open_exported`."""
    run, settings = home(checkpoint)
    recorded = checkpoints.read_fingerprints(checkpoint)
    choose = partial(choose_images, run, checkpoint, recorded, backend.info, settings.data)
    source, stem, suffix = choose(split, root)
    stem += "" if run == checkpoint or checkpoint.name == usual_checkpoint(run) else f"-{checkpoint.name}"
    stem += f"-{backend.name}{'-flip' if flip else ''}{suffix}"
    own = None if suffix else root
    return Subject(
        run,
        run,
        stem,
        source,
        backend.info,
        lambda name: choose(name, own).source,
        _logits(backend, batch_size, flip),
        flexible=False,
    )


def _logits(backend: Backend, batch_size: int, flip: bool) -> Callable[[ImageSource, ModelInfo], SplitLogits]:
    if batch_size < 1:
        raise SettingsError(f"batch_size: must be at least 1, got {batch_size}")
    return lambda source, _: compute_logits(backend, source, batch_size, flip)


def evaluate_file(path: Path, **options: Any) -> Report:
    """Evaluate an exported file, and write the report and its pictures beside it; for the options see
    `open_exported`."""
    subject = open_exported(path, **options)
    return report_on(subject, subject.logits(subject.source, subject.info))
