"""A model on ONNX Runtime or OpenVINO, exported once into the cache folder; or on what is the fastest here.

Always in fp32, so that the answer stays the same: every export is compared with its source before it is used. What is
in the cache is opened without PyTorch.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from convnext.errors import CheckpointError, SettingsError, UserError, did_you_mean, reason
from convnext.inference.backends import Backend, ExportedBackend, ExportInfo, open_file
from convnext.output import say
from convnext.runs import checkpoint as checkpoints
from convnext.storage.downloads import cache_folder
from convnext.storage.files import digest, write_text
from convnext.storage.locks import alone
from convnext.storage.measurements import cpu_name, remember, remembered

if TYPE_CHECKING:
    from torch import nn

    from convnext.weights.model_info import ModelInfo

BackendName: TypeAlias = Literal["eager", "onnxruntime", "openvino", "auto"]

_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}  # by the runtime that reads it
_DIGESTS = "digests.json"
_BATCH, _ROUNDS, _SECONDS = 8, 3, 0.3  # images, and seconds of each backend in a round, by which the fastest is found


@dataclass(frozen=True)
class _Weights:
    """A checkpoint's folder, or a model and the tag of its released weights, ``"convnext_tiny:in1k"``."""

    origin: Path | str

    def load(self) -> "tuple[nn.Module, ModelInfo]":
        if isinstance(self.origin, Path):
            return checkpoints.load_model(self.origin)
        from convnext.inference.released import released

        name, _, tag = self.origin.partition(":")
        return released(name, tag)

    def folder(self) -> Path:
        """Of what is kept of these weights, as this version exports them."""
        sources = sorted((Path(__file__).parent / "export").glob("*.py"))
        content = [version("convnext"), *map(digest, sources)]
        if isinstance(self.origin, Path):
            content += map(_digest, (self.origin / name for name in ("model.json", "model.safetensors")))
        else:
            content += [self.origin]
        return cache_folder() / "exports" / _short(content)


def _digest(path: Path) -> str:
    try:
        return digest(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}") from None


def _short(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def check_name(backend: str | None) -> None:
    """Refuse, with a SettingsError, a name that is no `BackendName`, unless it is None."""
    if backend not in (None, *get_args(BackendName)):
        raise SettingsError(f"no backend is called {backend!r}: {did_you_mean(str(backend), get_args(BackendName))}")


def open_runtime(origin: Path | str, backend: str, device: str = "auto") -> ExportedBackend | None:
    """The model on ``backend``; None where that is ``"eager"``, or ``"auto"`` finds PyTorch the fastest.

    Args:
        origin: a checkpoint's folder, or released weights such as ``"convnext_tiny:in1k"``.
        backend: a `BackendName`.
        device: where PyTorch would compute; the others compute on the CPU.

    Raises:
        SettingsError: no such backend, one that is not installed, or one that does not compute on the device.
        CheckpointError: the weights cannot be read, or their export is not what they are.
        UserError: the model cannot be exported.
    """
    check_name(backend)
    if backend == "eager":
        return None
    if backend == "auto":
        return _open_fastest(_Weights(origin), device)
    if device not in ("auto", "cpu"):
        raise SettingsError(f"backend {backend} computes on the CPU, not on {device}: leave the device out")
    return _open_cached(_Weights(origin), backend)


def _needs(backend: str) -> tuple[str, ...]:
    return (backend, "onnx", "onnxscript")


def _open_cached(weights: _Weights, backend: str) -> ExportedBackend:
    """What is in the cache, made where it is not there or damaged."""
    if find_spec(backend) is None:
        raise SettingsError(f"backend {backend} is not installed: pip install 'convnext[export]'")
    folder = weights.folder() / f"{backend}-{version(backend)}"
    if (opened := _open_whole(folder)) is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_name(f".{folder.name}.lock")):
            if (opened := _open_whole(folder)) is None:  # another process may have made it meanwhile
                _make(weights, backend, folder)
                opened = _open_whole(folder)
    if opened is None:
        raise CheckpointError(f"the disk gives {folder} back other than it was written")
    return opened


def _open_whole(folder: Path) -> ExportedBackend | None:
    """The export in a folder; None where it is not there, or not as it was written."""
    try:
        digests = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        if any(digest(folder / name) != known for name, known in digests.items()):
            return None
        return open_file(next(folder / name for name in digests if not name.endswith(".bin")))
    except (OSError, ValueError, AttributeError, StopIteration, CheckpointError):
        return None


def _make(weights: _Weights, backend: str, folder: Path) -> None:
    """Export into ``folder``, which is there once it is whole and compared."""
    if missing := [package for package in _needs(backend) if find_spec(package) is None]:
        raise SettingsError(f"backend {backend} needs {', '.join(missing)}: pip install 'convnext[export]'")
    from convnext.config import DataSettings
    from convnext.inference.export.acceptance import Examination
    from convnext.inference.export.evidence import gather_evidence
    from convnext.inference.export.export import FORMATS
    from convnext.inference.export.formats import Source, check_size

    model, info = weights.load()
    check_size(model, "fp32")
    say(f"exporting for {backend}, once: into {folder}")
    format = FORMATS[_FORMATS[backend]]
    about = ExportInfo(
        version=version("convnext"), precision="fp32", preprocessing=False, licence="", model=info, data=DataSettings()
    )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        source, path = Source(model, about, []), unfinished / f"model{format.suffix}"

        def write_and_open(_: tuple[str, ...]) -> ExportedBackend:
            import_module(f"convnext.inference.export.{format.module}").write(source, path)
            return open_file(path)

        Examination(path, path, source, gather_evidence(info, None, None, {}), 0.0, write_and_open).export()
        write_text(unfinished / _DIGESTS, json.dumps({file.name: digest(file) for file in unfinished.iterdir()}))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _open_fastest(weights: _Weights, device: str) -> ExportedBackend | None:
    """The fastest on this CPU by what was measured before, or now; None for PyTorch."""
    installed = [name for name in _FORMATS if find_spec(name) is not None]
    versions = [version(name) for name in ("torch", *installed)]
    threads = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
    key = _short([cpu_name(), os.cpu_count(), *threads, device, installed, versions])
    path = weights.folder() / f"fastest-{key}.json"
    opened: dict[str, ExportedBackend] = {}
    if (rates := remembered(path, ("eager", *_FORMATS))) is None:
        from convnext.devices import pick_device

        if (picked := pick_device(device)) != "cpu":
            say(f"backend eager, which computes on {picked}")
            return None
        opened = _possible(weights, installed)
        rates = _measure(weights, opened)
        remember(path, rates)
    fastest, *_ = ordered = sorted(rates, key=lambda name: -rates[name])
    shown = ", ".join(f"{name} {rates[name]:,.1f}" for name in ordered)
    say(f"backend {fastest}, the fastest here for this model: {shown} images/s, measured once in batches of {_BATCH}")
    return None if fastest == "eager" else opened.get(fastest) or _open_cached(weights, fastest)


def _possible(weights: _Weights, installed: list[str]) -> dict[str, ExportedBackend]:
    opened = {}
    for name in installed:
        try:
            opened[name] = _open_cached(weights, name)
        except UserError as error:
            say(f"backend {name} is left out: {error}")
    return opened


def _measure(weights: _Weights, opened: Mapping[str, Backend]) -> dict[str, float]:
    """Images a second of PyTorch and of the backends, which take turns."""
    from convnext.inference.backends.eager import EagerBackend

    backends: dict[str, Backend] = {"eager": EagerBackend(*weights.load(), "cpu"), **opened}
    info = backends["eager"].info
    shape = _BATCH, info.image_size, info.image_size, info.channels
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    times: dict[str, list[float]] = {name: [] for name in backends}
    for number in range(_ROUNDS + 1):
        for name, backend in backends.items():
            start = now = time.perf_counter()
            while now == start or (number and now - start < _SECONDS):
                before = now
                backend(images)
                now = time.perf_counter()
                if number:  # the first round allocates
                    times[name].append(now - before)
    return {name: _BATCH / median(seconds) for name, seconds in times.items()}
