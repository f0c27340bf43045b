"""Memory that worker processes write batches into and the main process reads, made once for a whole training.

A batch in new shared memory costs a page fault for every 4 KB in the worker and another in the main process: for images
that are decoded already, more than all else that is done with them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from convnext.errors import DataError


class Slot(NamedTuple):
    """Where a batch lies: ``shape`` values of one byte in a slot of a worker."""

    worker: int
    slot: int
    shape: tuple[int, ...]


class Slots:
    """Room for the batches that are on their way from each worker.

    Each worker fills its slots in turn. It has one more than it may be ahead by, so that the batch that the main
    process has in hand is left alone until that process asks for the next.

    Args:
        workers: number of worker processes.
        ahead: most batches of a worker that the main process has not taken yet.
        size: bytes of the largest batch.

    Raises:
        DataError: too little shared memory.
    """

    def __init__(self, workers: int, ahead: int, size: int) -> None:
        shape = (workers, ahead + 1, size)
        try:
            # As torch does for a worker's batch: mapped by all processes, not copied to them.
            storage = torch.UntypedStorage._new_shared(workers * (ahead + 1) * size)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            amount = workers * (ahead + 1) * size / 1e6
            raise DataError(
                f"{amount:,.0f} MB of shared memory for the batches of {workers} data workers cannot be had: lower "
                f"--data.workers or --batch-size, or give more (in a container: --shm-size)"
            ) from error
        self._memory = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
        self._next = 0

    def stack(self, images: Sequence[Tensor]) -> Slot:
        """Put a batch, ``(n, *shape)`` uint8, into the next slot of the worker that calls; it must fit."""
        worker = get_worker_info()
        assert worker is not None
        number, self._next = self._next, (self._next + 1) % self._memory.shape[1]
        slot = Slot(worker.id, number, (len(images), *images[0].shape))
        torch.stack(list(images), out=self.batch(slot))
        return slot

    def batch(self, slot: Slot) -> Tensor:
        """The memory of a batch, ``(n, *shape)`` uint8: a view."""
        size = 1
        for length in slot.shape:
            size *= length
        return self._memory[slot.worker, slot.slot, :size].view(slot.shape)
