"""A model over every image of a split, each exactly once, and the report and pictures of a whole run."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from convnext import kernels
from convnext.data.batch_transforms import Normalize
from convnext.data.loading.loader import AugmentedImages, EvalSampler, batches, raise_if_strict
from convnext.data.progress import tracked
from convnext.data.sources import ImageSource
from convnext.data.transforms import EvalTransform
from convnext.devices import autocast_of, keep_freed_memory, pick_device
from convnext.errors import DataError, SettingsError
from convnext.evaluation.images import choose_images
from convnext.evaluation.metrics import Report, compute_report, most_confident_mistakes, ranked
from convnext.evaluation.predictions import write_predictions
from convnext.kernels import cuda
from convnext.models.classifier import classify_in_full_precision
from convnext.plots import predictions as pictures
from convnext.runs import checkpoint as checkpoints
from convnext.runs.folder import home
from convnext.storage.files import write_text
from convnext.weights.files import usual_checkpoint
from convnext.weights.model_info import ModelInfo

if TYPE_CHECKING:
    from accelerate import Accelerator
    from numpy.typing import NDArray

_SHOWN, _PIXELS = 32, 256  # images of a picture of predictions, and their longer sides at most
PICTURES = ("confusion_matrix", "predictions", "mistakes")  # of a report, by the ends of their names


@dataclass(frozen=True)
class SplitLogits:
    """What a model says of a split's images, on the CPU.

    Attributes:
        logits: ``(N, K)``.
        targets: ``(N,)`` class indices.
        indices: ``(N,)``, of the images in their source.
        unreadable: a line for each image that could not be read.
    """

    logits: Tensor
    targets: Tensor
    indices: Tensor
    unreadable: list[str]


def prepare_model(model: nn.Module, info: ModelInfo) -> nn.Module:
    """The same model, on its device, to compute as a training and its evaluations do: with our kernels and arithmetic,
    and the logits in float32."""
    kernels.install(model)
    cuda.install(model)
    classify_in_full_precision(model, len(info.classes))
    return model


@torch.inference_mode()
def compute_logits(
    model: nn.Module,
    source: ImageSource,
    info: ModelInfo,
    *,
    device: torch.device,
    batch_size: int = 256,
    workers: int | None = None,
    strict: bool = False,
    autocast: Any = nullcontext,
    between_batches: Callable[[], None] = lambda: None,
    accelerator: "Accelerator | None" = None,
    title: str | None = "evaluating",
) -> SplitLogits:
    """The model's logits for every image of ``source``, in order; where several processes train, each computes some and
    gets all.

    Args:
        model: from normalized images to logits.
        source: the images.
        info: how the model wants them.
        device: where the model is.
        batch_size: images at a time.
        workers: processes that read images; None chooses.
        strict: whether an unreadable image is an error.
        autocast: context of the forward pass.
        between_batches: called before each batch; what it raises ends the evaluation.
        accelerator: the processes; None for this one alone.
        title: of a bar on a terminal, or a line each minute elsewhere; None for neither.

    Raises:
        DataError: no image could be read; or ``strict`` and one could not.
    """
    model.eval()
    normalize = Normalize(info.mean, info.std).to(device)
    dataset = AugmentedImages(source, [EvalTransform(info.image_size, info.center_crop)], seed=0)
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    # Empty tensors first, so that a process without images has something of the right shape to gather.
    logits, indices = [torch.empty(0, len(info.classes))], [torch.empty(0, dtype=torch.int64)]
    unreadable = list[str]()
    sampler = EvalSampler(len(source), batch_size, rank, world_size)
    with kernels.held(model), batches(dataset, sampler, workers, device.type == "cuda") as stream:
        for batch in tracked(stream, len(sampler), title or "", shown=title is not None):
            between_batches()
            unreadable += batch.unreadable
            raise_if_strict(batch.unreadable, strict)
            if len(batch.targets):
                images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
                with autocast():
                    logits.append(model(normalize(images)).float())
                logits[-2] = logits[-2].cpu()  # of the batch before, while the device computes this one
                indices.append(batch.indices)
    all_indices, all_logits = torch.cat(indices), torch.cat([*logits[:-1], logits[-1].cpu()])
    if accelerator is not None:
        all_indices, all_logits, unreadable = _gathered(accelerator, all_indices, all_logits, unreadable)
    if not len(all_logits):
        raise DataError(f"none of the {len(source)} images can be read; the first: {unreadable[0]}")
    return SplitLogits(all_logits, torch.from_numpy(source.targets)[all_indices], all_indices, unreadable)


def _gathered(
    accelerator: "Accelerator", indices: Tensor, logits: Tensor, unreadable: list[str]
) -> tuple[Tensor, Tensor, list[str]]:
    from convnext import distributed

    everyones = distributed.gather_images(accelerator, indices, indices, logits)
    return everyones[0], everyones[1], distributed.gather_lines(accelerator, unreadable)


class FlipAverage(nn.Module):
    """The mean logits of each image and of its mirror image, of a model from ``(N, C, H, W)`` to logits ``(N, K)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, K)``."""
        logits: Tensor = (self.model(images) + self.model(images.flip(-1))) / 2
        return logits


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated, on which images, and where its reports go.

    Attributes:
        path: the run's folder, or an exported file: what to call it.
        folder: where its reports go.
        stem: how their names begin.
        source: the images.
        info: how the model wants them.
        split: a source by its split's name, of the same data.
        logits: of the images of a source, prepared by an ``info`` (that of an exported file is its own).
        flexible: whether ``logits`` takes images of another size and crop.
    """

    path: Path
    folder: Path
    stem: str
    source: ImageSource
    info: ModelInfo
    split: Callable[[str], ImageSource]
    logits: Callable[[ImageSource, ModelInfo], SplitLogits]
    flexible: bool = True


def evaluate(
    run: str | Path,
    *,
    split: str | None = None,
    checkpoint: str | None = None,
    root: str | Path | None = None,
    batch_size: int = 256,
    device: str = "auto",
    workers: int | None = None,
    flip: bool = False,
    model: nn.Module | None = None,
    data: Mapping[str, Dataset[Any]] | None = None,
) -> Report:
    """Evaluate a run's checkpoint, and write the report and its pictures into the run's folder.

    Args:
        run: the run's folder; or a checkpoint's, or its ``model.safetensors``. Where that was copied elsewhere, it gets
            the report.
        split: ``"test"``, ``"val"`` or ``"train"``, as the run divided its data, or ``"all"``; None for the test split,
            or for all images of a ``root`` of class folders without splits.
        checkpoint: ``"last"`` or ``"best"``; None for the last, or the best of a run with `patience`.
        root: a folder to evaluate on in place of the one trained on: the same data moved, or other images, of all or
            some of the classes.
        batch_size: images at a time.
        device: as in `convnext.config.RunSettings`.
        workers: processes that read images; None chooses.
        flip: judge each image together with its mirror image, at twice the cost; the files' names say so.
        model: where the weights go, if the run trained a module of one's own.
        data: the data sets by split, if the run was given one's own.

    Raises:
        CheckpointError: no such checkpoint, or one for other classes than the data's.
        DataError: the data is missing or cannot be read.
    """
    subject = open_run(
        run,
        split=split,
        checkpoint=checkpoint,
        root=root,
        batch_size=batch_size,
        device=device,
        workers=workers,
        flip=flip,
        model=model,
        data=data,
    )
    return report_on(subject, subject.logits(subject.source, subject.info))


def open_run(
    run: str | Path,
    *,
    split: str | None = None,
    checkpoint: str | None = None,
    root: str | Path | None = None,
    batch_size: int = 256,
    device: str = "auto",
    workers: int | None = None,
    flip: bool = False,
    model: nn.Module | None = None,
    data: Mapping[str, Dataset[Any]] | None = None,
) -> Subject:
    """What `evaluate` evaluates; for arguments and errors see there."""
    if batch_size < 1:
        raise SettingsError(f"batch_size: must be at least 1, got {batch_size}")
    folder = checkpoints.find(Path(run), checkpoint)
    loaded, info = checkpoints.load_model(folder, model)
    run, settings = home(folder)
    moved = None if root is None else Path(root)
    recorded = checkpoints.read_fingerprints(folder)
    choose = partial(choose_images, run, folder, recorded, info, settings.data, data=data)
    source, stem, suffix = choose(split=split, root=moved)
    where = torch.device(pick_device(device))
    prepared = cache(lambda: _prepared(loaded, info, where, flip))

    def logits(images: ImageSource, wanted: ModelInfo) -> SplitLogits:
        autocast = autocast_of(settings.precision, where)
        return compute_logits(
            prepared(), images, wanted, device=where, batch_size=batch_size, workers=workers, autocast=autocast
        )

    stem += "" if run == folder or folder.name == usual_checkpoint(run) else f"-{folder.name}"
    stem += ("-flip" if flip else "") + suffix
    own = None if suffix else moved  # a folder of other images has no splits of the run's

    return Subject(run, run, stem, source, info, lambda name: choose(split=name, root=own).source, logits)


def _prepared(model: nn.Module, info: ModelInfo, device: torch.device, flip: bool) -> nn.Module:
    """The model on the device, to compute as the run itself did."""
    keep_freed_memory()
    model = prepare_model(model.to(device).to(memory_format=torch.channels_last), info)
    return FlipAverage(model) if flip else model


def report_on(subject: Subject, predictions: SplitLogits) -> Report:
    """Write the report on what a subject made of its images; see `write_report`."""
    return write_report(subject.folder, subject.stem, predictions, subject.source, subject.info)


def write_report(run: Path, stem: str, predictions: SplitLogits, source: ImageSource, info: ModelInfo) -> Report:
    """Write what a model made of a split into the run's folder: ``<stem>_report.json``, ``<stem>_predictions.csv`` and
    the pictures of `PICTURES`, ``<stem>_….png``."""
    logits, targets, classes = predictions.logits, predictions.targets, info.classes
    report = compute_report(logits, targets, classes, len(predictions.unreadable))
    write_text(run / f"{stem}_report.json", json.dumps(report.as_dict(), indent=2))
    write_predictions(run / f"{stem}_predictions.csv", source, classes, logits, targets, predictions.indices)
    matrix, some, mistakes = (run / f"{stem}_{picture}.png" for picture in PICTURES)
    pictures.confusion_matrix(report.confusion, report.most_confused, classes, matrix)
    evenly = np.linspace(0, report.count - 1, min(_SHOWN, report.count)).astype(int)
    pictures.prediction_grid(
        _shown(predictions, source, info, evenly), f"{stem}: images spread evenly over the split", some
    )
    worst = most_confident_mistakes(logits, targets, _SHOWN).numpy()
    title = f"{stem}: the most confident mistakes" if len(worst) else f"{stem}: no mistakes"
    pictures.prediction_grid(_shown(predictions, source, info, worst), title, mistakes)
    return report


def _shown(
    predictions: SplitLogits, source: ImageSource, info: ModelInfo, rows: "NDArray[np.int64]"
) -> list[pictures.PredictedImage]:
    """The images of these rows of the predictions, small."""
    shown = []
    best = ranked(predictions.logits[rows])[:, 0].tolist()
    for row, guess in zip(rows.tolist(), best, strict=True):
        index = int(predictions.indices[row])
        image = source.load(index)
        image.thumbnail((_PIXELS, _PIXELS))
        probability = predictions.logits[row].softmax(0)[guess].item()
        true, name = info.classes[predictions.targets[row]], Path(source.image_name(index)).name
        shown.append(pictures.PredictedImage(image, name, true, info.classes[guess], probability))
    return shown
