"""Several processes that train one model: who speaks, and what they gather."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather, pad_across_processes
from torch import Tensor
from torch.distributed import ProcessGroup

from convnext.errors import UserError
from convnext.output import await_first_process

T = TypeVar("T")


def from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What ``make`` returns on the main process, which alone calls it, on every process.

    Raises:
        UserError: what it raises, on every process.
    """
    made: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            made = [make()]
        except UserError as error:
            made = [error]
    broadcast_object_list(made)
    if isinstance(made[0], UserError):
        raise made[0]
    result: T = made[0]
    return result


def own_count(accelerator: Accelerator, count: int) -> int:
    """How many of ``count`` images are this process's, where each takes every so-many-th."""
    return len(range(accelerator.process_index, count, accelerator.num_processes))


@contextmanager
def reported_once(accelerator: Accelerator) -> Iterator[None]:
    """Let one process a machine speak of an error that all of them have, as those of settings and data are.

    Raises:
        SystemExit: on the others, with the status of a user's mistake.
    """
    try:
        yield
    except UserError as error:
        if accelerator.is_local_main_process:
            raise
        await_first_process()
        raise SystemExit(2) from error


@contextmanager
def first_on_machine(accelerator: Accelerator) -> Iterator[None]:
    """Let one process a machine go first; where it fails the others go on, to find out for themselves.

    Accelerate's own would leave them waiting then, until they were cut off.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


def total(accelerator: Accelerator, numbers: Tensor) -> Tensor:
    """The sum over all processes, on each of them."""
    return numbers if accelerator.num_processes == 1 else accelerator.reduce(numbers, reduction="sum")


def agreed(accelerator: Accelerator, *numbers: int) -> list[int]:
    """The sums over all processes, on each of them, by way of their hosts: nobody waits for a device."""
    if accelerator.num_processes == 1:
        return list(numbers)
    sums = torch.tensor(numbers)
    torch.distributed.all_reduce(sums, group=_hosts(torch.distributed.group.WORLD))
    values: list[int] = sums.tolist()
    return values


@cache
def _hosts(world: ProcessGroup) -> ProcessGroup:
    """The processes of the world, joined by their hosts' network."""
    if torch.distributed.get_backend(world) == "gloo":
        return world
    group = torch.distributed.new_group(backend="gloo")
    assert isinstance(group, ProcessGroup)
    return group


def gather_images(accelerator: Accelerator, indices: Tensor, *values: Tensor) -> list[Tensor]:
    """Put together what the processes computed for their own images.

    Args:
        accelerator: the processes.
        indices: ``(n,)`` of this process's images in the split; each image belongs to one process.
        values: tensors ``(n, …)`` in that order.

    Returns:
        The values of all images that were computed, in the order of the split, on every process.
    """
    if accelerator.num_processes == 1:
        return list(values)
    padded = pad_across_processes(indices.to(accelerator.device), dim=0, pad_index=-1)
    everyones = gather(padded).cpu()
    order = torch.argsort(everyones)
    order = order[everyones[order] >= 0]
    gathered = (gather(pad_across_processes(value.to(accelerator.device), dim=0)).cpu() for value in values)
    return [value[order] for value in gathered]


def gather_lines(accelerator: Accelerator, lines: list[str]) -> list[str]:
    """The lines of all processes, on each of them."""
    if accelerator.num_processes == 1:
        return lines
    everyones: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(everyones, lines)
    return sorted(line for gathered in everyones for line in gathered)
