"""A guard against waiting for a device."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses copies between the host and a device that are waited for."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        waits = not ((kwargs or {}).get("non_blocking") or any(arg is True for arg in args))
        assert len({x.device for x in tensors}) < 2 or not waits, f"{func} waits"
        return made
