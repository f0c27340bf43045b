"""How many images fit into memory at once."""

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from rich.filesize import decimal
from torch import Tensor, nn

from convnext.config import RunSettings
from convnext.data.datasets.load import OWN
from convnext.data.loading.resident import stored_bytes
from convnext.data.splits import Splits
from convnext.errors import SettingsError
from convnext.output import say
from convnext.training.faults import TrainingError, no_memory

_FRACTION = 0.8  # of the free memory: batches on their way, and fragmentation, take the rest
_RESIDENT_FRACTION = 0.25  # of a GPU's free memory that the training images may take unasked
_RESIDENT_ON_CPU = 2**31  # bytes of a CPU's memory that they may
_EVALUATED = 256  # images that a process evaluates at a time
_EVALUATED_FOR_TRAINED = 8  # of these in the memory of one that is trained on: nothing is kept for a backward pass
_STATES = 4  # times the weights: gradient, two moments, moving average


def settle_gradient_accumulation(settings: RunSettings, model: nn.Module, accelerator: Accelerator) -> RunSettings:
    """The settings with ``gradient_accumulation`` a number, the same on every process; see `micro_batches_that_fit`."""
    if settings.gradient_accumulation != "auto":
        return settings
    channels, size = settings.model.in_channels or 3, settings.data.last_size
    images = -(-settings.batch_size // accelerator.num_processes)
    device = accelerator.device
    micro_batches = micro_batches_that_fit(model, (channels, size, size), images, device, accelerator.autocast)
    everyones = accelerator.gather(torch.tensor([micro_batches], device=device))
    settled: RunSettings = settings.replace(gradient_accumulation=(count := int(everyones.max())))
    each = f"{count} micro-batches of {-(-settings.batch_size // count):,}" if count > 1 else "one piece"
    say(f"memory holds the batch of {settings.batch_size:,} images in {each}: gradient_accumulation {count}")
    return settled


def images_to_evaluate(settings: RunSettings, processes: int) -> int:
    """Images that each process evaluates at a time: no more than go where a micro-batch of its training does."""
    assert settings.gradient_accumulation != "auto"
    micro_batch = -(-settings.batch_size // (processes * settings.gradient_accumulation))
    return min(_EVALUATED, _EVALUATED_FOR_TRAINED * micro_batch)


def settle_augment_on(settings: RunSettings, splits: Splits, accelerator: Accelerator) -> RunSettings:
    """The settings with ``data.augment_on`` "workers" or "device", the same on every process.

    Raises:
        SettingsError: it is "device", and the images do not fit into the memory of a process's device.
    """
    asked, device = settings.data.augment_on, accelerator.device
    if asked == "workers":
        return settings
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    if device.type == "cpu":  # a machine's processes share its memory, and each holds all images
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if asked == "device":
        if (needed := stored_bytes(settings, splits.train)) > free:
            raise SettingsError(
                f"data.augment_on device: the training images take {decimal(needed)} and {device} has {decimal(free)} "
                f"free: use --data.augment-on workers"
            )
        return settings
    everyones = accelerator.gather(torch.tensor([goes_on(device.type, settings, splits, free)], device=device))
    settled: RunSettings = settings.replace(**{"data.augment_on": "device" if everyones.all() else "workers"})
    return settled


def goes_on(device: str, settings: RunSettings, splits: Splits, free: int) -> bool:
    """Whether training images go, unasked, on a device of that type with so many bytes free.

    On a CPU that depends on the images alone, so that the same settings give the same result on every machine, unless
    memory is short there.
    """
    one_size, augment = splits.train.one_size, settings.augment
    # A user's own data may give another image each time; areas can be drawn of images of one size alone.
    if settings.data.name == OWN or (augment.crop == "resized" and not one_size):
        return False
    if device == "cpu":
        # Images of other sizes are photographs, as a rule, which workers had better read beside a CPU that computes.
        return one_size and stored_bytes(settings, splits.train) <= min(free, _RESIDENT_ON_CPU)
    # Whether policies are faster there than by workers, beside it, has not been measured.
    measured = augment.policy == "none" and not augment.color_jitter
    return device == "cuda" and measured and stored_bytes(settings, splits.train) <= free * _RESIDENT_FRACTION


def micro_batches_that_fit(
    model: nn.Module,
    shape: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
) -> int:
    """The fewest micro-batches into which this process's ``batch_size`` images ``(C, H, W)`` must be split for forward
    and backward pass to fit into memory; the model, on its device, is left as it was.

    On CUDA passes are tried, with fewer and fewer images; elsewhere, where running out of memory would end the process
    or push others out, it is computed from what a few images keep for the backward pass.

    Raises:
        TrainingError: not even one image fits.
    """
    run = partial(_pass, model, shape, device, autocast)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        images = _by_trying(run, model, batch_size) if device.type == "cuda" else _by_computing(run, model)
    finally:
        model.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    if images < 1:
        raise TrainingError("not even one image fits into memory: lower data.image_size, or choose a smaller model")
    return -(-batch_size // min(images, batch_size))


def _pass(
    model: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    count: int,
) -> None:
    """The forward and backward pass of so many images."""
    images = torch.zeros(count, *shape, device=device)
    with autocast():
        logits = model(images)
    logits.float().square().mean().backward()


def _by_trying(run: Callable[[int], None], model: nn.Module, images: int) -> int:
    while images:
        try:
            _try(run, model, images)
            return images
        except RuntimeError as error:
            if not no_memory(error):
                raise
            images //= 2
        model.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
    return 0


def _try(run: Callable[[int], None], model: nn.Module, images: int) -> None:
    """A pass beside what a step keeps: in a function of its own, so that all is free again where it fails."""
    states = [torch.empty_like(p) for p in model.parameters() for _ in range(_STATES - 1)]
    run(images)
    del states


def _by_computing(run: Callable[[int], None], model: nn.Module) -> int:
    states, each = _states_and_image(run, model)
    return int((available() * _FRACTION - states) / max(1, each))


def step_bytes(
    model: nn.Module,
    shape: tuple[int, int, int],
    images: int,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Bytes that a training step on so many images ``(C, H, W)`` holds at most, counted and not measured: the weights,
    their gradients, two moments and average, and what the forward pass keeps for the backward pass. The model's
    gradients and buffers change."""
    device = next(model.parameters()).device
    states, each = _states_and_image(partial(_pass, model, shape, device, autocast), model.train())
    return round(states + each * images)


def _states_and_image(run: Callable[[int], None], model: nn.Module) -> tuple[int, float]:
    """Bytes of the weights and all that goes with them, and those that each image adds."""
    few, more = (_saved_bytes(run, count) for count in (2, 4))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return _STATES * weights, (more - few) / 2


def available(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process may still take: those of the machine, or fewer where a container, a service or
    a cluster's job limits it. Linux shows control groups, of version 2 or 1, in ``groups``, and our ``own`` a line
    each."""
    free: int = psutil.virtual_memory().available
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A group has the limits of those above it, too; in a container the path may be one outside of it.
        folder = root / group.lstrip("/")
        for level in (folder, *folder.parents):
            if level.is_relative_to(root):
                free = min(free, _left(level, *names, otherwise=free))
    return free


def _left(group: Path, limit: str, usage: str, reclaimable: str, otherwise: int) -> int:
    """A control group's limit minus what it uses, without files' contents that the kernel can drop; ``otherwise`` where
    it has no limit."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return otherwise
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / usage).read_text()) - int(statistics.get(reclaimable, 0))
    except OSError:  # not there, or not to be read
        return otherwise
    return max(0, int(most) - used)


def _saved_bytes(run: Callable[[int], None], images: int) -> int:
    """Bytes that the forward pass keeps for the backward pass, each block of memory once."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(images)
    return sum(saved.values())
