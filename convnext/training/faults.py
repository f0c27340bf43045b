"""What to say, and what to do, when a step goes wrong."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from convnext.config import RunSettings
from convnext.errors import UserError

# The second line is what MPS and drivers say, the third oneDNN where there is no room for what it works in, the fourth
# cuDNN and cuBLAS.
_NO_MEMORY = re.compile(
    "not enough memory|can't allocate memory|std::bad_alloc"
    "|(MPS backend|error:) out of memory|Invalid buffer size"
    "|could not create a memory|could not (create|execute) a primitive$"
    "|unable to find an engine to execute|Unable to find a valid cuDNN algorithm|STATUS_ALLOC_FAILED"
)


class TrainingError(UserError):
    """Training cannot go on; what was saved before is as it was."""


def no_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_NO_MEMORY.search(str(error)))


def origin(model: nn.Module, images: Tensor, gradient: Mapping[str, float]) -> str:
    """Where numbers stopped being finite in a step: in the images, a weight, the first layer in the order of
    computation, or only in the gradient.

    Args:
        model: as it was then, or after another step.
        images: of the step, ``(N, C, H, W)``.
        gradient: the norm of each parameter's.
    """
    if not images.isfinite().all():
        return "the images"
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"weight {name}"
    layers: list[str] = []

    def check(name: str, _: nn.Module, __: object, output: object) -> None:
        if not layers and isinstance(output, Tensor) and not output.isfinite().all():
            layers.append(name)

    leaves = [(name, module) for name, module in model.named_modules() if name and not list(module.children())]
    hooks = [module.register_forward_hook(partial(check, name)) for name, module in leaves]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, before in buffers:
            buffer.copy_(before)
    if layers:
        return f"the output of layer {layers[0]}"
    return next((f"the gradient of {name}" for name, norm in gradient.items() if not math.isfinite(norm)), "the loss")


def not_finite(step: int, where: str, settings: RunSettings, folder: Path) -> TrainingError:
    """The error that ends a run after too many steps without a finite loss and gradient."""
    clip = "lower optimizer.clip_norm" if settings.optimizer.clip_norm else "set optimizer.clip_norm"
    last = folder / "checkpoints" / "last"
    weights = f"; one from weights before that has --model.weights {last.resolve() / 'model.safetensors'}"
    return TrainingError(
        f"loss or gradient was not a finite number in {settings.max_skipped_steps + 1} steps in a row, up to step "
        f"{step}, first in {where}: lower optimizer.lr (now {settings.peak_lr:.3g} at its peak), lengthen the warm-up, "
        f"or {clip}, in a new run (--resume does not change these)"
        + (weights if last.exists() else "; no checkpoint was saved before")
    )


def check_there(folder: Path, is_there: Callable[[], bool]) -> None:
    """End a run whose folder is no longer where it was, with a TrainingError."""
    if not is_there():
        raise TrainingError(
            f"{folder.absolute()} was removed or renamed while this run was training into it, so the run stops and "
            f"writes nothing more: if it was renamed, go on with convnext train --resume and its new name"
        )


@contextmanager
def explained(settings: RunSettings, folder: Path) -> Iterator[None]:
    """Turn what the machine did to a run (out of memory, another process lost) into a TrainingError that says what to
    do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if no_memory(error):
            last = folder / "checkpoints" / "last"
            saved = f"the last checkpoint is {last.resolve()}" if last.exists() else "no checkpoint was saved before"
            raise TrainingError(
                f"memory ran out: set --checkpoint-activations, with which --resume goes on; or in a new run let "
                f"--batch-size auto find how much fits, split the batch with --gradient-accumulation "
                f"(now {settings.gradient_accumulation}), or lower batch_size ({settings.batch_size}) or "
                f"data.image_size ({settings.data.image_size}); {saved}"
            ) from error
        if isinstance(error, torch.distributed.DistError) or re.search(r"gloo/|Gloo", str(error)):
            raise TrainingError(
                f"another process of the run ended, or its host is out of reach: its own message says why "
                f"({str(error).splitlines()[0]}); go on with --resume"
            ) from error
        raise
