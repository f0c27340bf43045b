"""What is measured: a model by name, a run or an exported file; and which entries there are of it."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from convnext.config import DataSettings, ModelSettings
from convnext.errors import SettingsError, UserError, did_you_mean
from convnext.inference.backends import open_file
from convnext.inference.released import released
from convnext.models import libraries, registry
from convnext.models.summary import count_parameters
from convnext.output import say
from convnext.runs import checkpoint as checkpoints
from convnext.runs.folder import home
from convnext.storage.hub import fetch_model
from convnext.weights.files import exported_file, refuse_checkpoint
from convnext.weights.model_info import ModelInfo, read_json

if TYPE_CHECKING:
    from torch import nn

ModelName: TypeAlias = Literal["ours", "timm", "torchvision"]
BackendName: TypeAlias = Literal["eager", "compile", "onnxruntime", "openvino"]

PRECISIONS: dict[BackendName, tuple[str, ...]] = {
    "eager": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
"""The precisions that a backend is measured in."""
_MODELS: tuple[ModelName, ...] = ("ours", "timm", "torchvision")
_NEEDS = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "onnx", "onnxscript")}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        name: as the user named it.
        info: its classes and how it wants its images.
        checkpoint: the folder with its weights, of a run.
        file: where it is an exported one, with its ``precision``, and whether its ``preprocessing`` is inside.
        data: what it was trained on; None where that is not known.
    """

    name: str
    info: ModelInfo
    checkpoint: Path | None = None
    file: Path | None = None
    precision: str = "fp32"
    preprocessing: bool = False
    data: DataSettings | None = None

    def module(self) -> "nn.Module":
        """With its weights, or random ones where it has none, on the CPU."""
        if self.checkpoint:
            return checkpoints.load_model(self.checkpoint)[0]
        if tag := _tag(self.name):
            return released(self.name.partition(":")[0], tag)[0]
        torch.manual_seed(0)
        return registry.build(self.info.model, len(self.info.classes))

    def peer(self, library: str) -> "nn.Module":
        """The same model of ``timm`` or ``torchvision``, with random weights; UserError where that has none such."""
        settings, classes = self.info.model, len(self.info.classes)
        name = settings.name.rpartition(":")[2]
        if name not in libraries.names(library):
            raise UserError(f"{library} has no {name}")
        build = libraries.builder(library, name)
        with torch.device("meta"):
            own, other = registry.build(settings, classes), build(classes, self.info.channels)
        if count_parameters(own) != count_parameters(other):
            raise UserError(f"{library}'s {name} has other layers than this one ({registry.describe(settings)})")
        torch.manual_seed(0)
        return build(classes, self.info.channels)


@dataclass(frozen=True)
class Entry:
    """A model on a backend in a precision. bf16 is autocast, or with ``cast`` that of all weights and operations."""

    model: ModelName
    backend: BackendName
    precision: str
    cast: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.backend} {self.precision}{' (weights cast)' if self.cast else ''}"


def find_subject(name: str, checkpoint: str | None = None, image_size: int = 224) -> Subject:
    """What the user means: a path where there is one, or else a model's name.

    Args:
        name: a run's folder, an exported file, ``"convnext_tiny"``, ``"convnext_tiny:in1k"`` or ``"hf:owner/name"``.
        checkpoint: as of `convnext.evaluate`, of a run.
        image_size: side of the images of a model without weights, in pixels.

    Raises:
        UserError: there is no such, or it cannot be read.
    """
    path = fetch_model(name.removeprefix("hf:")) if name.startswith("hf:") else Path(name)
    if file := exported_file(path):
        if file.suffix == ".pt2":
            raise SettingsError(f"{file}: of a .pt2 measure the run that it was made from; files are .onnx and .xml")
        refuse_checkpoint(checkpoint, file, "an exported file")
        export = open_file(file).export
        return Subject(name, export.model, None, file, export.precision, export.preprocessing, export.data)
    if path.exists():
        folder = checkpoints.find(path, checkpoint)
        return Subject(name, read_json(folder / "model.json", ModelInfo), folder, data=home(folder)[1].data)
    if tag := _tag(name):
        refuse_checkpoint(checkpoint, name, "released weights")
        return Subject(name, released(name.partition(":")[0], tag)[1])
    try:
        settings = registry.resolve(ModelSettings(name=name))
    except SettingsError as error:
        hint = str(error) if ":" in name else did_you_mean(name, registry.list_models())
        raise SettingsError(f"{name} is no run or exported file that is there, and no model's name: {hint}") from None
    refuse_checkpoint(checkpoint, name, "a model's name")
    registry.check_image_size(settings, image_size)
    classes = tuple(map(str, range(1000)))
    return Subject(
        name, ModelInfo(model=settings, classes=classes, mean=_MEAN, std=_STD, image_size=image_size, center_crop=0.875)
    )


def _tag(name: str) -> str:
    """Of released weights; nothing for a name without, or one of a library's models."""
    first, _, tag = name.partition(":")
    return "" if first in registry.LIBRARIES else tag


def entries(
    subject: Subject, models: Sequence[str], backends: Sequence[str], precisions: Sequence[str], device: str
) -> list[Entry]:
    """The entries that can be had here, of those asked for; why others cannot is a line on standard error.

    Raises:
        SettingsError: none can.
    """
    wanted = [
        Entry(model, backend, precision, cast)
        for model, backend in product(_MODELS, PRECISIONS)
        for precision in PRECISIONS[backend]
        for cast in ((False, True) if model != "ours" and precision == "bf16" else (False,))
        if model in models and backend in backends and precision in precisions
        if model == "ours" or backend not in _NEEDS
    ]
    if subject.file:  # computes where and in what it was written for
        own: BackendName = "onnxruntime" if subject.file.suffix == ".onnx" else "openvino"
        theirs = [entry for entry in wanted if entry.model != "ours"]
        wanted = [Entry("ours", own, subject.precision), *theirs] if "ours" in models else theirs
    peers = {model: _peer_obstacle(subject, model) for model in {entry.model for entry in wanted} - {"ours"}}
    obstacles = {entry: peers.get(entry.model) or _obstacle(subject, entry, device) for entry in wanted}
    say(*(f"left out: {why}" for why in dict.fromkeys(filter(None, obstacles.values()))))
    possible = [entry for entry, why in obstacles.items() if why is None]
    if not possible:
        on_cpu = any(peers.get(entry.model) is None and _obstacle(subject, entry, "cpu") is None for entry in wanted)
        remedy = "give --device cpu, or ask" if on_cpu else "ask"
        raise SettingsError(f"nothing is left to measure: {remedy} for other --models, --backends or --precisions")
    return possible


def _peer_obstacle(subject: Subject, library: str) -> str | None:
    try:
        with torch.device("meta"):
            subject.peer(library)
    except UserError as error:
        return f"{library}: {error}"
    return None


def _obstacle(subject: Subject, entry: Entry, device: str) -> str | None:
    if entry.backend not in _NEEDS:
        return None
    if device != "cpu":
        return f"{entry.backend}, which computes on the CPU: this is measured on {device}"
    needs = () if subject.file else (*_NEEDS[entry.backend], *(["nncf"] if entry.precision == "int8" else []))
    if missing := [package for package in needs if importlib.util.find_spec(package) is None]:
        what = "int8" if missing == ["nncf"] else entry.backend
        return f"{what}, which needs {', '.join(missing)}: pip install 'convnext[export]'"
    return None
