"""Everything that a comparison says of one finished run: read from its folder, or computed once and written into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convnext.comparison.flops import flops_by_epoch
from convnext.config import RunSettings
from convnext.data.sources import ImageSource
from convnext.devices import autocast_of, pick_device
from convnext.errors import CheckpointError
from convnext.evaluation.calibration import expected_calibration_error, fit_temperature
from convnext.evaluation.evaluator import open_run, prepare_model
from convnext.evaluation.metrics import Report, compute_report, ranked
from convnext.models import registry
from convnext.models.summary import count_gmacs, count_parameters, images_per_second
from convnext.runs import checkpoint
from convnext.runs.folder import read_metrics
from convnext.storage.files import digest, usual_mode, writing
from convnext.storage.measurements import cpu_name
from convnext.training.memory import step_bytes
from convnext.training.optimizers import configure
from convnext.training.proxy import COPY, proxy_model
from convnext.weights.model_info import ModelInfo, read_json, read_object

LOGITS = "comparison.safetensors"  # in a run's folder
BATCH = 32  # images at once, in `inference_speed`


@dataclass(frozen=True)
class Point:
    """How well a run did after an epoch, on the validation split, and what it had cost until then: seconds of training,
    without validation, and floating-point operations."""

    epoch: int
    seconds: float
    flops: float
    top1: float


@dataclass(frozen=True)
class Measured:
    """What is known of a finished run.

    Attributes:
        run: its folder.
        settings: its resolved settings.
        info: how its weights are used.
        versions: of the libraries it was trained with, and the commit, where there was one.
        fingerprint: a digest of the images it was tested on, with their order and labels.
        trained_on: a digest of the images it was trained on, likewise.
        indices: ``(N,)``, of the tested images in their split.
        targets: ``(N,)`` class indices.
        logits: ``(N, K)``.
        temperature: by which the logits are divided to calibrate them, fitted on the validation split; None where the
            run has none apart from the test split.
        parameters: of the model.
        flops: floating-point operations of the forward pass on one image at the run's size.
        memory: bytes of a training step, counted: see `convnext.training.memory.step_bytes`.
        history: the lines of its ``metrics.jsonl``.
        report: the metrics on the test split.
        finished: when its weights were written, in seconds since 1970.
    """

    run: Path
    settings: RunSettings
    info: ModelInfo
    versions: Mapping[str, str]
    fingerprint: str
    trained_on: str
    indices: NDArray[np.int64]
    targets: NDArray[np.int64]
    logits: Tensor
    temperature: float | None
    parameters: int
    flops: float
    memory: int
    history: list[dict[str, Any]]
    report: Report
    finished: float

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """``(N, K)``, not calibrated."""
        values: NDArray[np.float64] = self.logits.double().softmax(1).numpy()
        return values

    @cached_property
    def calibrated(self) -> NDArray[np.float64] | None:
        """``(N, K)`` probabilities after temperature scaling; None without a temperature."""
        if self.temperature is None:
            return None
        values: NDArray[np.float64] = (self.logits.double() / self.temperature).softmax(1).numpy()
        return values

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``(N,)``: whether the most probable class is the true one."""
        values: NDArray[np.bool_] = ranked(self.logits)[:, 0].numpy() == self.targets
        return values

    @cached_property
    def ece(self) -> float:
        """The expected calibration error, a fraction."""
        return float(expected_calibration_error(self.probabilities, self.correct))

    @cached_property
    def ece_calibrated(self) -> float | None:
        """The same after temperature scaling."""
        return None if self.calibrated is None else float(expected_calibration_error(self.calibrated, self.correct))

    @property
    def seconds(self) -> float:
        """Of training, without validation."""
        return float(sum(line["seconds"] for line in self.history))

    @property
    def training_flops(self) -> float:
        """Floating-point operations of the whole training."""
        return self._flops[-1]

    @property
    def training_speed(self) -> float:
        """Images a second in training: the median over the epochs."""
        return float(np.median([line["images_per_second"] for line in self.history]))

    @property
    def points(self) -> list[Point]:
        """How well it did after each epoch that was validated."""
        seconds = np.cumsum([line["seconds"] for line in self.history]).tolist()
        rows = zip(self.history, seconds, self._flops, strict=True)
        return [
            Point(line["epoch"], spent, flops, line["val_top1"]) for line, spent, flops in rows if "val_top1" in line
        ]

    @cached_property
    def _flops(self) -> list[float]:
        """After each epoch."""
        last = self.history[-1]
        images = round(last["step"] / last["epoch"]) * self.settings.batch_size
        proxy = None if self.settings.proxy_from is None else proxy_model(self.run / COPY)
        each = flops_by_epoch(self.settings, len(self.info.classes), images, proxy)
        totals: list[float] = np.cumsum(each).tolist()
        return [totals[line["epoch"] - 1] for line in self.history]


def measure(run: Path, device: str = "auto") -> Measured:
    """What is known of a finished run. The logits of its validation and test images are computed once, by the weights
    that its own report is of, and written into its folder; they count as long as weights and images are the same.

    Raises:
        CheckpointError: it is not finished, or a file is missing or damaged.
        DataError: its images are not there, or are not those that it had.
    """
    folder = checkpoint.find(run)
    info = read_json(folder / "model.json", ModelInfo)
    settings = read_json(run / "settings.json", RunSettings)
    history = read_metrics(run)
    if not history or not any(run.glob("*_report.json")):
        raise CheckpointError(f"{run} is not finished: go on with convnext train --resume {run}")
    prints = checkpoint.read_fingerprints(folder)
    # The versions of the code belong to what is measured as little as the machine does.
    about = {"weights": digest(folder / "model.safetensors")} | {name: prints[name] for name in sorted(prints)}
    known = _read(run / LOGITS, about)
    if known is None:
        known = _compute(run, folder, settings, prints, pick_device(device))
        _write(run / LOGITS, about, known)
    logits, targets = known["test.logits"], known["test.targets"]
    calibrated = "val.logits" in known
    with torch.device("meta"):
        model = registry.build(info.model, len(info.classes))
    return Measured(
        run=run,
        settings=settings,
        info=info,
        versions=read_object(folder / "training.json").get("versions", {}),
        fingerprint=prints["test"],
        trained_on=prints["train"],
        indices=known["test.indices"].numpy(),
        targets=targets.numpy(),
        logits=logits,
        temperature=fit_temperature(known["val.logits"], known["val.targets"]) if calibrated else None,
        parameters=count_parameters(model),
        flops=2e9 * count_gmacs(model, info.image_size, len(info.mean)),
        memory=int(known["memory"]),
        history=history,
        report=compute_report(logits, targets, info.classes),
        finished=(folder / "model.safetensors").stat().st_mtime,
    )


def _read(path: Path, about: Mapping[str, str]) -> dict[str, Tensor] | None:
    """What `_write` wrote; None where it is not there, damaged, or of other weights or images."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()} if file.metadata() == about else None  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _write(path: Path, about: dict[str, str], tensors: dict[str, Tensor]) -> None:
    with writing(path) as unfinished, usual_mode(unfinished):
        save_file(tensors, unfinished, about)


def _compute(
    run: Path, folder: Path, settings: RunSettings, prints: Mapping[str, str], device: str
) -> dict[str, Tensor]:
    subject, where = open_run(run, device=device), torch.device(device)
    sources = {"test": subject.source}
    if prints.get("val") not in (None, prints["test"]):  # a val split that is the test split can calibrate nothing
        sources["val"] = subject.split("val")
    tensors: dict[str, Tensor] = {}
    for split, source in sources.items():
        predictions = subject.logits(source, subject.info)
        tensors |= {f"{split}.{name}": getattr(predictions, name) for name in ("logits", "targets", "indices")}
    model, info = checkpoint.load_model(folder)
    configure(model, settings)
    shape = (len(info.mean), settings.data.last_size, settings.data.last_size)
    images = -(-settings.batch_size // int(settings.gradient_accumulation))
    autocast = autocast_of(settings.precision, where)
    tensors["memory"] = torch.tensor(step_bytes(prepare_model(model.to(where), info), shape, images, autocast))
    return tensors


def images_of(run: Path) -> ImageSource:
    """The images that a finished run was tested on; DataError where they are not there, or not the same."""
    return open_run(run, device="cpu").source


def inference_speed(measured: Measured, device: str = "auto") -> float:
    """Images a second of the forward pass alone, in batches of `BATCH`, in the precision of the run: of its model with
    random weights on random images, so that every contender of a report is measured on one machine, in one minute."""
    where, info = torch.device(pick_device(device)), measured.info
    with torch.random.fork_rng(devices=[]):
        model = prepare_model(registry.build(info.model, len(info.classes)).to(where), info)
        with autocast_of(measured.settings.precision, where)():
            return images_per_second(model, info.image_size, BATCH, len(info.mean))


def machine(device: str = "auto") -> str:
    """What `inference_speed` is measured on."""
    if pick_device(device) == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
