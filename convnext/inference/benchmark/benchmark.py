"""`benchmark`: what a model computes in a second on every backend that is here, beside the same model of others.

Each entry is measured in a process of its own, where it has the machine to itself, with the same threads and freed
memory kept; rounds of all entries follow each other, so that a slow minute is not one entry's alone.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from convnext.data.datasets.load import load_splits
from convnext.data.images import UnreadableImageError
from convnext.data.progress import duration, tracked
from convnext.data.sources import ImageSource
from convnext.devices import pick_device
from convnext.errors import SettingsError, UserError
from convnext.evaluation.images import check_classes
from convnext.inference.backends import Images
from convnext.inference.benchmark.measuring import FORMAT_OF, Environment, classes_of, in_child, measure, write
from convnext.inference.benchmark.subject import Entry, Subject, entries, find_subject
from convnext.inference.export.checks import pictures
from convnext.inference.preparation import prepare_reduced
from convnext.output import counted, say

_CALIBRATION = 300  # images of a run that int8 is calibrated on; random ones are fewer: speed alone is meant
_RANDOM = 16
# Seconds on two cores for ConvNeXt-T, for the estimate: a process's start, a file written, int8, a batch size compiled.
_START, _WRITE, _QUANTIZE, _COMPILE = 2, 15, 45, 25


@dataclass(frozen=True)
class Row:
    """What an entry reached.

    Attributes:
        model: ``"ours"``, ``"timm"`` or ``"torchvision"``.
        backend: ``"eager"``, ``"compile"``, ``"onnxruntime"`` or ``"openvino"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"``, or an exported file's.
        batch: the batch size at which most images are computed in a second.
        images_per_second: at that batch size, in the median pass.
        p50_ms: of one image alone, the median.
        p95_ms: of one image alone, which 95 % do not exceed.
        top1: on images of the test split, between 0 and 1; None without images, and for others' models, whose weights
            are random.
    """

    model: str
    backend: str
    precision: str
    batch: int
    images_per_second: float
    p50_ms: float
    p95_ms: float
    top1: float | None = None


@dataclass(frozen=True)
class _Pictures:
    """Images ``(H, W, C)`` of the test split with their labels, and of the training split."""

    test: list[Images]
    labels: list[int]
    calibration: list[Images]


def benchmark(
    run: str | Path,
    *,
    models: Sequence[str] = ("ours", "timm", "torchvision"),
    backends: Sequence[str] = ("eager", "compile", "onnxruntime", "openvino"),
    precisions: Sequence[str] = ("fp32", "bf16", "int8"),
    batch_sizes: Sequence[int] = (1, 8, 32),
    seconds: float = 6.0,
    rounds: int = 3,
    threads: int | None = None,
    images: int = 1000,
    root: str | Path | None = None,
    checkpoint: str | None = None,
    image_size: int = 224,
    device: str = "auto",
) -> list[Row]:
    """Measure every entry that can be had here; those that cannot are named on standard error.

    Args:
        run: a run's folder, an exported file, or a model's name.
        models: whose.
        backends: what computes.
        precisions: of the arithmetic.
        batch_sizes: tried for the most images a second.
        seconds: of measuring for each entry and batch size, over all rounds.
        rounds: of all entries.
        threads: of each entry; None for PyTorch's.
        images: of the test split of a run, for top-1; 0 for none, and then int8 is calibrated on random images.
        root: folder of the images, in place of the one trained on.
        checkpoint: of a run, as of `convnext.evaluate`.
        image_size: side of the images of a model by name, in pixels.
        device: where PyTorch computes.

    Returns:
        A row for each model, backend and precision, the most images a second first.

    Raises:
        UserError: no such model, a number out of its bounds, or nothing that could be measured.
    """
    _check(batch_sizes, seconds, rounds, threads, images)
    sizes = tuple(sorted({1, *batch_sizes}))
    where = pick_device(device)
    subject = find_subject(str(run), checkpoint, image_size)
    wanted = entries(subject, models, backends, precisions, where)
    loaded = _load(subject, images, None if root is None else Path(root), wanted)
    with tempfile.TemporaryDirectory(prefix="convnext-benchmark-") as folder:
        environment = Environment(where, threads or torch.get_num_threads(), Path(folder))
        about = _estimate(wanted, sizes, seconds, rounds)
        each = f"{len(wanted)} entries, {counted(environment.threads, 'thread')} each"
        say(f"{each}: about {about} where two cores run ConvNeXt-T")
        times = _measure(subject, wanted, environment, loaded, sizes, seconds / rounds, rounds)
        top1 = _correct(subject, times, environment, loaded, max(sizes))
    return _rows(times, top1)


def _check(batch_sizes: Sequence[int], seconds: float, rounds: int, threads: int | None, images: int) -> None:
    least = {"batch-sizes": min(batch_sizes, default=1), "rounds": rounds, "threads": threads or 1}
    if threads == 0 or (low := next((name for name, value in least.items() if value < 1), None)):
        raise SettingsError(f"{'threads' if threads == 0 else low}: must be at least 1")
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"seconds: must be a number above 0, got {seconds:g}")
    if images < 0:
        raise SettingsError(f"images: must be at least 0, got {images}")


def _load(subject: Subject, count: int, root: Path | None, wanted: Sequence[Entry]) -> _Pictures:
    """What the entries need of the images that the subject was trained on; random images for int8 where it has none."""
    quantized = any(entry.precision == "int8" for entry in wanted) and subject.file is None
    calibrated, source, data = 0, None, subject.data
    if count and data is not None and any(entry.model == "ours" for entry in wanted):
        try:
            splits = load_splits(data if root is None else data.replace(root=root))
            check_classes(subject.info, splits.classes, Path(subject.name))
            source, calibrated = splits.test, _CALIBRATION if quantized else 0
        except UserError as error:
            say(f"no top-1, for its images cannot be read: {error}")
    if source is None:
        if quantized:
            say("int8 is calibrated on random images: its speed is meant, not its accuracy")
        size, random = subject.info.image_size, np.random.default_rng(0)
        noise = random.integers(0, 256, (_RANDOM, size, size, subject.info.channels), np.uint8)
        return _Pictures([], [], list(noise))
    test, labels = _labelled(subject, source, count)
    return _Pictures(test, labels, pictures(splits.train, subject, calibrated))


def _labelled(subject: Subject, source: ImageSource, count: int) -> tuple[list[Images], list[int]]:
    """Up to ``count`` readable images, spread evenly over ``source``, and their labels; none is larger than need be."""
    images, labels = list[Images](), list[int]()
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist():
        try:
            images.append(prepare_reduced(source.picture(index), subject))
            labels.append(int(source.targets[index]))
        except UnreadableImageError:  # training and evaluation name it
            continue
    return images, labels


def _estimate(wanted: Sequence[Entry], sizes: Sequence[int], seconds: float, rounds: int) -> str:
    """How long it will take."""
    compiled = sum(entry.backend == "compile" for entry in wanted)
    files = sum(entry.backend in ("onnxruntime", "openvino") for entry in wanted)
    quantized = sum(entry.precision == "int8" for entry in wanted)
    total = len(wanted) * (len(sizes) * seconds + rounds * _START)
    total += compiled * len(sizes) * _COMPILE + files * _WRITE + quantized * _QUANTIZE
    return duration(total)


def _measure(
    subject: Subject,
    wanted: Sequence[Entry],
    environment: Environment,
    loaded: _Pictures,
    sizes: tuple[int, ...],
    seconds: float,
    rounds: int,
) -> dict[Entry, dict[int, list[float]]]:
    """Seconds of all passes of each entry by batch size; an entry that fails is left out, with a line."""
    times: dict[Entry, dict[int, list[float]]] = {entry: {size: [] for size in sizes} for entry in wanted}
    turns = [(number, entry) for number in range(rounds) for entry in wanted]
    for number, entry in tracked(turns, len(turns), "measuring"):
        if entry not in times:
            continue
        try:
            if not number and entry.backend in FORMAT_OF and subject.file is None:
                in_child(write, subject, entry, environment, loaded.calibration)
            for size, passes in in_child(measure, subject, entry, environment, sizes, seconds).items():
                times[entry][size] += passes
        except UserError as error:
            say(f"left out: {entry}: {error}")
            del times[entry]
    if not times:
        raise UserError("no entry could be measured")
    return times


def _correct(
    subject: Subject, measured: Iterable[Entry], environment: Environment, loaded: _Pictures, batch_size: int
) -> dict[Entry, float]:
    """The fraction of the test images that each entry with the subject's weights names; an entry that cannot is left
    out, with a line."""
    whole = len(loaded.test) // batch_size * batch_size or len(loaded.test)  # one size is compiled
    images, labels = loaded.test[:whole], np.array(loaded.labels[:whole])
    ours = [entry for entry in measured if entry.model == "ours" and whole]
    top1: dict[Entry, float] = {}
    for entry in tracked(ours, len(ours), "top-1"):
        try:
            named = in_child(classes_of, subject, entry, environment, images, batch_size)
        except UserError as error:  # its speed has been measured
            say(f"no top-1 of {entry}: {error}")
        else:
            top1[entry] = float((named == labels).mean())
    return top1


def _rows(times: Mapping[Entry, Mapping[int, list[float]]], top1: Mapping[Entry, float]) -> list[Row]:
    """A row a model, backend and precision, each with the best of its ways, the most images a second first."""
    rows: dict[tuple[str, str, str], Row] = {}
    for entry, by_size in times.items():
        rates = {size: size / median(passes) for size, passes in by_size.items()}
        best = max(rates, key=rates.__getitem__)
        p50, p95 = (1000 * float(np.percentile(by_size[1], q)) for q in (50, 95))
        key = entry.model, entry.backend, entry.precision
        row = Row(*key, best, rates[best], p50, p95, top1.get(entry))
        rows[key] = max(row, rows.get(key, row), key=lambda each: each.images_per_second)
    return sorted(rows.values(), key=lambda row: -row.images_per_second)
