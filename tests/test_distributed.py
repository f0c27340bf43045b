"""What processes agree on without their devices."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from convnext import distributed


def agree(rank: int, backend: str, meeting: Path) -> None:
    """Join another process in a group that pretends to be of this backend, and agree with it."""
    torch.distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    groups, all_reduce = [], torch.distributed.all_reduce

    def noted(tensor: torch.Tensor, group: Any) -> None:
        groups.append(group)
        all_reduce(tensor, group=group)

    torch.distributed.all_reduce = noted  # type: ignore[assignment]
    torch.distributed.get_backend = lambda _=None: backend  # type: ignore[assignment]
    accelerator: Any = SimpleNamespace(num_processes=2)
    for step in range(3):
        assert distributed.agreed(accelerator, rank + 1, step, rank == 1) == [3, 2 * step, 1]
    assert len(set(groups)) == 1
    assert (groups[0] is torch.distributed.group.WORLD) == (backend == "gloo")


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_processes_agree_between_hosts(backend: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    started = [context.Process(target=agree, args=(rank, backend, tmp_path / "meeting")) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]


def test_one_process_needs_no_group() -> None:
    accelerator: Any = SimpleNamespace(num_processes=1)
    assert distributed.agreed(accelerator, 5, True) == [5, 1]
