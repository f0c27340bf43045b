"""What computes logits: PyTorch, ONNX Runtime or OpenVINO, from a run or from an exported file.

A backend is opened by `open_file`, or made from a module by `convnext.inference.backends.eager.EagerBackend`. Importing
this is cheap, and a file for ONNX Runtime or OpenVINO is opened and run without PyTorch.
"""

import importlib
import importlib.util
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from convnext.config import DataSettings
from convnext.errors import CheckpointError, SettingsError, reason
from convnext.weights.model_info import ModelInfo, validated

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
Images: TypeAlias = NDArray[np.uint8]

# By the suffix of an exported file: the module that opens it, and the package that it needs.
_BY_SUFFIX = {
    ".onnx": ("onnx_runtime", "onnxruntime"),
    ".xml": ("openvino_runtime", "openvino"),
    ".pt2": ("exported_program", "torch"),
}
METADATA = "convnext"
"""Name of the entry of an exported file that holds its `ExportInfo`, as JSON."""


class ExportInfo(BaseModel):
    """What an exported file says of itself.

    Attributes:
        version: of this package, that wrote it.
        precision: of its arithmetic.
        preprocessing: whether it takes uint8 images of any size, and resizes, crops and normalises them itself.
        licence: of the weights that it began from; empty where nobody but the user trained it.
        model: its classes and how it wants its images.
        data: the data that it was trained on, without paths.
        fingerprints: digests of its images, by split.
        float_layers: those that int8 left in float to keep the accuracy.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    version: str
    precision: Precision
    preprocessing: bool
    licence: str
    model: ModelInfo
    data: DataSettings
    fingerprints: dict[str, str] = {}
    float_layers: tuple[str, ...] = ()


class Backend(Protocol):
    """Computes logits.

    Attributes:
        name: ``"eager"``, ``"onnxruntime"``, …
        info: its classes and how it wants its images.
        preprocessing: whether it takes images of any size, or those alone that `EvalTransform` has made.
    """

    name: str
    info: ModelInfo
    preprocessing: bool

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``."""


class ExportedBackend(ABC):
    """A `Backend` that was opened from a file.

    Attributes:
        path: the file.
        export: what it says of itself.
    """

    name: str

    def __init__(self, path: Path, export: ExportInfo) -> None:
        self.path, self.export = path, export
        self.info, self.preprocessing = export.model, export.preprocessing

    @abstractmethod
    def compute(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """The logits of what the file takes: `normalized` images, or uint8 ones where it prepares them itself."""

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``.

        Raises:
            CheckpointError: the file cannot compute what it says of itself.
        """
        check_images(images, self)
        try:
            logits = self.compute(images if self.preprocessing else normalized(images, self.info))
        except Exception as error:  # of whatever class the runtime has
            raise CheckpointError(
                f"{self.path} cannot compute images of shape {images.shape}: {runtime_reason(error)}; export it again"
            ) from None
        if logits.shape != (len(images), len(self.info.classes)):
            raise CheckpointError(
                f"{self.path} says that it has {len(self.info.classes)} classes, and of {len(images)} images its "
                f"logits have shape {logits.shape}: export it again"
            )
        return logits


def logits_of(backend: Backend, images: Sequence[Images], flip: bool = False) -> NDArray[np.float32]:
    """The logits ``(N, K)`` of images ``(H, W, C)``: together, or one by one where their sizes may differ; with
    ``flip`` the mean of those of each image and of its mirror image."""
    if flip:
        mean: NDArray[np.float32] = (logits_of(backend, images) + logits_of(backend, mirrored(images))) / np.float32(2)
        return mean
    if backend.preprocessing:
        return np.concatenate([backend(image[None]) for image in images])
    return backend(np.stack(images))


def check_logits(backend: Backend, logits: NDArray[Any]) -> None:
    """Refuse, with a CheckpointError, logits ``(N, K)`` that no probabilities come of: NaN, or infinite ones."""
    bad = int((~np.isfinite(logits.max(1))).sum())  # of which -inf beside finite ones is none: a probability of 0
    if bad:
        where = getattr(backend, "path", f"backend {backend.name}")
        raise CheckpointError(
            f"{where}: the model's logits are no numbers (NaN or infinite) for {bad} of {len(logits)} images: its "
            f"training diverged, or its arithmetic overflows: take another checkpoint, or export it again in fp32"
        )


def mirrored(images: Sequence[Images]) -> list[Images]:
    """The mirror images of ``(H, W, C)`` images."""
    return [np.ascontiguousarray(image[:, ::-1]) for image in images]


def open_file(
    path: Path, device: str = "auto", trust: bool = False, threads: int | None = None, backend: str | None = None
) -> ExportedBackend:
    """The backend of an exported file.

    Args:
        path: the file.
        device: where PyTorch computes, for a ``.pt2``; the others compute on the CPU, and take no other.
        trust: whether the file may run code, which opening a ``.pt2`` can do.
        threads: of ONNX Runtime and OpenVINO; None for as many as they choose. PyTorch has its own of the process.
        backend: the one that the user asked for, which has to be the file's; None or ``"auto"`` for any.

    Raises:
        CheckpointError: no file of `convnext export`, or a damaged one.
        SettingsError: the package that runs it is not installed; another backend; a device that the file does not
            compute on; or a ``.pt2`` that is not trusted.
    """
    module, package = _BY_SUFFIX[path.suffix]
    own = package.replace("torch", "eager")
    if backend not in (None, "auto", own):
        raise SettingsError(f"{path} is for backend {own}, not {backend}: leave the backend out, or take the run")
    if own != "eager" and device not in ("auto", "cpu"):
        raise SettingsError(f"{path} computes on the CPU, not on {device}: leave the device out, or take the run")
    if importlib.util.find_spec(package) is None:
        raise SettingsError(f"{path} needs {package}, which is not installed: pip install 'convnext[export]'")
    opener = importlib.import_module(f"{__name__}.{module}").open_file
    opened: ExportedBackend = opener(path, device, trust, threads)
    return opened


def read_info(path: Path) -> ExportInfo:
    """What an exported file says of itself, without running anything that is in it; as `open_file` otherwise."""
    if path.suffix != ".pt2":
        return open_file(path).export
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}")), None)
            return parse_info(path, archive.read(name).decode() if name else None)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None


def parse_info(path: Path, text: str | None) -> ExportInfo:
    """The `ExportInfo` that a file holds as ``text``; CheckpointError where it has none, or one that cannot be read."""
    if not text:
        raise CheckpointError(f"{path} was not written by convnext export: it does not say its classes and image size")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read what {path} says of itself: {reason(error)}") from None
    return validated(values, ExportInfo, path)


def runtime_reason(error: Exception) -> str:
    """The line of a runtime's error that says what is wrong: OpenVINO begins with lines of its own code."""
    lines = (line for line in str(error).splitlines() if not line.startswith(("Exception from ", "Check '")))
    return next(filter(None, lines), "") or reason(error)


def normalized(images: Images, info: ModelInfo) -> NDArray[np.float32]:
    """``(N, H, W, C)`` uint8 to float32 ``(N, C, H, W)`` of mean 0 and standard deviation 1, as `Normalize` does."""
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) * 255 for values in (info.mean, info.std))
    # Channels first: numpy is slow with rows of three numbers.
    pixels: NDArray[np.float32] = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    pixels -= mean
    pixels /= std
    return pixels


def check_images(images: Any, backend: Backend) -> None:
    """Refuse, with a SettingsError, images of a shape or type that a backend does not take."""
    info, shape = backend.info, np.shape(images)
    size = ("any height", "any width") if backend.preprocessing else (info.image_size, info.image_size)
    fits = len(shape) == 4 and shape[3] == info.channels and (backend.preprocessing or shape[1:3] == size)
    if not fits or images.dtype != np.uint8:
        wanted = f"({', '.join(map(str, ('N', *size, info.channels)))})"
        raise SettingsError(f"images: uint8 {wanted} are wanted, got {images.dtype} {shape}")
