"""What the child processes do: write an exported file, measure an entry, name the classes of images."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from convnext.config import DataSettings
from convnext.devices import keep_freed_memory
from convnext.errors import UserError, reason
from convnext.inference.backends import Backend, ExportInfo, Images, check_logits, logits_of, open_file
from convnext.inference.backends.eager import EagerBackend
from convnext.inference.benchmark.subject import Entry, Subject
from convnext.inference.export.export import FORMATS
from convnext.inference.export.formats import InPrecision, Source

FORMAT_OF = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The export format that a backend reads."""
_WARM_UP = 2  # passes: the first compiles, the second allocates
T = TypeVar("T")


@dataclass(frozen=True)
class Environment:
    """Where entries compute: ``device``, with so many ``threads``, from the exported files in ``folder``."""

    device: str
    threads: int
    folder: Path


def in_child(function: Callable[..., T], *args: object) -> T:
    """What the function returns in a process of its own, so that a crash, memory and threads are of it alone.

    Raises:
        UserError: it failed, or its process died.
    """
    # Children of a server that has imported PyTorch, and nothing else, start at once; not so on Windows.
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, _be_quiet) as pool:
        try:
            return pool.submit(_answer, function, *args).result()
        except BrokenProcessPool:
            raise UserError("its process died: where memory ran out, choose smaller --batch-sizes") from None


def _be_quiet() -> None:
    """Nothing of what libraries print comes between our lines."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _answer(function: Callable[..., T], *args: object) -> T:
    try:
        return function(*args)
    except Exception as error:  # of any library, and not all of them can be sent to another process
        raise UserError(reason(error)) from None


def file_of(subject: Subject, entry: Entry, folder: Path) -> Path:
    """The exported file that an entry of ONNX Runtime or OpenVINO reads."""
    return subject.file or folder / f"{entry.precision}{FORMATS[FORMAT_OF[entry.backend]].suffix}"


def write(subject: Subject, entry: Entry, environment: Environment, calibration: list[Images]) -> None:
    """Write the file of an entry; ``calibration`` are images ``(H, W, C)`` for int8."""
    torch.set_num_threads(environment.threads)
    info = ExportInfo(
        version=version("convnext"),
        precision=entry.precision,
        preprocessing=False,
        licence="",
        model=subject.info,
        data=DataSettings(),
    )
    writer = import_module(f"convnext.inference.export.{FORMATS[FORMAT_OF[entry.backend]].module}").write
    source = Source(EagerBackend(subject.module(), subject.info, "cpu").model, info, calibration)
    writer(source, file_of(subject, entry, environment.folder))


def measure(
    subject: Subject, entry: Entry, environment: Environment, sizes: tuple[int, ...], seconds: float
) -> dict[int, list[float]]:
    """Seconds of each pass, from uint8 images in memory to logits in memory, by batch size: at least one pass, and as
    many as fit into ``seconds``."""
    backend, info = _open(subject, entry, environment), subject.info
    size = round(info.image_size / info.center_crop) if backend.preprocessing else info.image_size
    random = np.random.default_rng(0)
    images = {count: random.integers(0, 256, (count, size, size, info.channels), np.uint8) for count in sizes}
    return {count: _passes(backend, batch, seconds) for count, batch in images.items()}


def _passes(backend: Backend, images: Images, seconds: float) -> list[float]:
    for _ in range(_WARM_UP):
        backend(images)
    times: list[float] = []
    start = now = time.perf_counter()
    while not times or now - start < seconds:
        before = time.perf_counter()
        backend(images)
        now = time.perf_counter()
        times.append(now - before)
    return times


def classes_of(
    subject: Subject, entry: Entry, environment: Environment, images: list[Images], batch_size: int
) -> NDArray[np.int64]:
    """The most probable class of each image, ``(N,)``; CheckpointError where logits are no numbers."""
    backend = _open(subject, entry, environment)
    starts = range(0, len(images), batch_size)
    logits: NDArray[np.float32] = np.concatenate(
        [logits_of(backend, images[start : start + batch_size]) for start in starts]
    )
    check_logits(backend, logits)
    named: NDArray[np.int64] = logits.argmax(1)
    return named


def _open(subject: Subject, entry: Entry, environment: Environment) -> Backend:
    torch.set_num_threads(environment.threads)
    keep_freed_memory()
    if entry.backend in FORMAT_OF:
        return open_file(file_of(subject, entry, environment.folder), threads=environment.threads)
    model = subject.module() if entry.model == "ours" else subject.peer(entry.model)
    if entry.cast:
        model = InPrecision(model, torch.bfloat16)
    autocast = entry.precision == "bf16" and not entry.cast
    backend = EagerBackend(model, subject.info, environment.device, "bf16" if autocast else "fp32")
    if entry.backend == "eager" and entry.model == "ours":
        backend.use_kernels(compile=True)
    if entry.backend == "compile":
        torch._dynamo.config.recompile_limit = 1000  # a graph for each batch size; past the limit nothing is compiled
        from torch._inductor import config

        config.freezing = True  # weights are constants, laid out once, and products take their activation along
        compiled: Any = torch.compile(backend.model, dynamic=False)
        backend.model = compiled
    return backend
