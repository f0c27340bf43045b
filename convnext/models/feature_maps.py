"""The feature maps that images pass through in any model, from the finest to the coarsest."""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Stage(NamedTuple):
    """The last module of a model whose feature maps have a size.

    Attributes:
        name: of the module in the model.
        module: from whatever it takes to feature maps.
        channels_last: whether these are ``(N, H, W, C)``, as in Swin, and not ``(N, C, H, W)``.
    """

    name: str
    module: nn.Module
    channels_last: bool


def stages(model: nn.Module, images: Tensor) -> list[Stage]:
    """The stages of a model, the finest first; none where it goes on in tokens ``(N, L, C)``, as a plain transformer.

    Blocks are not looked into, and maps of a single position, as after pooling, do not count.

    Args:
        model: any module that takes the images.
        images: square, ``(N, C, H, H)``.
    """
    maps, tokens = list[tuple[str, int, bool]](), list[str]()

    def record(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 3:
            tokens.append(name)
        elif isinstance(output, Tensor) and output.ndim == 4:
            _, first, second, third = output.shape
            if second == third or first == second:
                maps.append((name, second, second != third))

    modules = dict(model.named_modules())
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: record(name, output))
        for name, module in modules.items()
        if name
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    # Between blocks lies what is inside nothing but containers, and modules that end in no map.
    blocks = {name for name, _, _ in maps if not isinstance(modules[name], nn.Sequential)}
    if any(not blocks & _ancestors(name) for name in tokens):
        return []
    calls = Counter(name for name, _, _ in maps)  # an activation that is used again and again is the end of no stage
    between = [one for one in maps if calls[one[0]] == 1 and not blocks & _ancestors(one[0])]
    # What shrinks the map between two stages begins with a norm, which would count as the end of the first.
    between = [one for one in between if one[0].startswith("stages.")] or between
    by_size = {size: Stage(name, modules[name], channels_last) for name, size, channels_last in between if size > 1}
    return [stage for _, stage in sorted(by_size.items(), reverse=True)]


def _ancestors(name: str) -> set[str]:
    words = name.split(".")
    return {".".join(words[:count]) for count in range(1, len(words))}
