"""Where a run computes, in which arithmetic, and with which memory allocator settings."""

import ctypes
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from convnext.config import RunSettings
from convnext.errors import SettingsError

if TYPE_CHECKING:  # a prediction does not wait for it
    from accelerate import Accelerator


def make_accelerator(settings: RunSettings) -> "Accelerator":
    """The processes, device and precision of the settings.

    Raises:
        SettingsError: a device that this machine lacks, or a precision that the device lacks.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = pick_device(settings.device)
    keep_freed_memory()
    _meet_again(device)
    # Accelerate keeps one state a process, and would refuse a second run with another precision or device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    precision = {"fp32": "no"}.get(name := pick_precision(settings.precision, device), name)
    return Accelerator(mixed_precision=precision, cpu=device == "cpu")


def _meet_again(device: str) -> None:
    """After a restart by torchrun on one host, bring the processes together where they do not find dead ones.

    torchrun keeps one store through all restarts (unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which several hosts
    need, since each counts restarts for itself), with the addresses of the processes before still in it.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    here = os.environ
    restarts = here.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = here.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and here.get("GROUP_WORLD_SIZE") == "1"
    if restarts == "0" or not shared or torch.distributed.is_initialized():
        return
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(f"restart-{restarts}", store)
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def pick_device(name: str) -> str:
    """``name``, or for ``"auto"`` the first of CUDA, MPS and CPU that is there.

    Raises:
        SettingsError: the device named is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, available in there.items() if available)
    if not there[name]:
        raise SettingsError(f"device {name} is not available to PyTorch on this machine: use --device auto")
    return name


def pick_precision(name: str, device: str) -> str:
    """``name``, or for ``"auto"`` bf16 (else fp16) on CUDA and fp32 elsewhere.

    Raises:
        SettingsError: fp16 on another device than CUDA.
    """
    if name == "auto":
        if device != "cuda":
            return "fp32"
        # Older GPUs emulate bf16, slowly.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device != "cuda":
        raise SettingsError(f"precision fp16 needs a CUDA device, and this run uses {device}: use bf16 or fp32")
    return name


def autocast_of(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """The context in which a model computes as a run of that ``precision`` does; in fp32 where the device lacks it."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None or (dtype == torch.float16 and device.type != "cuda"):
        return nullcontext
    return partial(torch.autocast, device.type, dtype)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host, on the device; neither waits for the other."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what a training step frees for the next step.

    By default it returns large blocks to the kernel, which clears and maps every page again at each step: with
    activations of hundreds of megabytes a step on CPU that is a large part of the time. Does nothing elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
