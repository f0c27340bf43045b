"""The weights in other people's checkpoints: under whatever keys and prefixes, and beside whatever else.

A checkpoint is taken as one table of tensors with dotted names, through all dicts and lists in it. A set of weights is
recognised by the name that ends in that of the model's first convolution; what stands before it is their key.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convnext.errors import CheckpointError
from convnext.output import few

_DEEPEST = 32  # containers within each other that are looked into
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of any module
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?|avg|swa|shadow)([._\d]|$)", re.IGNORECASE)
_NO_WEIGHTS = re.compile(r"(^|[._])(optim\w*|grads?|moment\w*)([._\d]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Names:
    """The names that a kind of model gives its tensors.

    Attributes:
        layout: what they are called.
        first: those of which every such model has one: of its first convolution, the longer ones first.
        roots: the first parts of all its names.
        fits: whether a name is one of them.
        whole: whether the names that fit are those of a whole model, with or without its classifier.
    """

    layout: str
    first: tuple[str, ...]
    roots: frozenset[str]
    fits: Callable[[str], bool]
    whole: Callable[[Collection[str]], bool] = lambda _: True


def names_of(state: Mapping[str, Tensor]) -> Names:
    """The names of one model, whose state this is."""
    roots = frozenset(name.partition(".")[0] for name in state)
    most = len(state) // 2  # one of its blocks may begin as it does
    return Names("the model's own", tuple(state)[:1], roots, state.__contains__, lambda names: len(names) > most)


@dataclass(frozen=True)
class Extract:
    """A set of weights in a checkpoint.

    Attributes:
        key: the dotted keys and prefix that they are under; empty where there are none.
        layout: of their names.
        tensors: by name, without the key.
        problem: why they are no weights of a whole model; empty where they are.
        beside: names of other tensors in the same dict, which are left out.
        averaged: whether they are a moving average.
        others: keys of the other sets of weights in the checkpoint.
    """

    key: str
    layout: str
    tensors: dict[str, Tensor]
    problem: str
    beside: tuple[str, ...]
    averaged: bool
    others: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What was taken, and what was left out, where there was a choice."""
        notes = []
        if self.others:
            key = _shown(self.key) + " (a moving average)" * self.averaged
            notes.append(f"took the weights under {key}, not {_shown(*self.others)}: see weights_key")
        if self.beside:
            notes.append(f"left out {few(self.beside)}")
        return notes


def extract(checkpoint: Any, kinds: Sequence[Names], key: str | None = None) -> Extract:
    """The weights in a loaded checkpoint, of one of these kinds of models: those under ``key`` where it is given, or
    else those of a moving average where it has one beside others.

    Raises:
        CheckpointError: it has none, or several that nothing chooses between; the message says what it has.
    """
    table = _table(checkpoint)
    sets = _sets(table, kinds)
    fitting = [one for one in sets if not one.problem]
    if not fitting:
        raise CheckpointError(_without_weights(checkpoint, table, sets, kinds))
    different = [one for at, one in enumerate(fitting) if not any(_same(one, other) for other in fitting[:at])]
    averages = [one for one in different if one.averaged]
    candidates = averages or different
    if key is not None:
        candidates = [one for one in fitting if f".{key}." in f".{one.key}."]
    if len(candidates) != 1:
        keys = _shown(*(one.key for one in fitting))
        given = "" if key is None else f", and {len(candidates)} under {key!r}"
        raise CheckpointError(f"it has weights under {keys}{given}: choose by weights_key")
    return replace(candidates[0], others=tuple(one.key for one in different if one is not candidates[0]))


def _shown(*keys: str) -> str:
    return ", ".join(repr(key) if key else "no key" for key in keys)


def _table(checkpoint: Any) -> dict[str, tuple[str, Tensor]]:
    """Every tensor by its full name, with the key of the container that it is in; each container is looked into once,
    for there may be circles of them."""
    table: dict[str, tuple[str, Tensor]] = {}
    seen: set[int] = set()
    stack: list[tuple[str, str, Any, int]] = [("", "", checkpoint, 0)]
    while stack:
        container, name, value, depth = stack.pop()
        if isinstance(value, Tensor):
            if value.layout is torch.strided and not (value.is_quantized or value.is_meta):
                table[_INSIDE.sub("", name)] = _INSIDE.sub("", container), value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen and depth < _DEEPEST:
            seen.add(id(value))
            items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            stack += [(name, f"{name}.{key}" if name else str(key), inner, depth + 1) for key, inner in items[::-1]]
    return table


def _sets(table: Mapping[str, tuple[str, Tensor]], kinds: Sequence[Names]) -> list[Extract]:
    """What may be a set of weights, as it comes in the checkpoint."""
    prefixes: dict[str, tuple[Names, str]] = {}
    for name in table:
        for kind in kinds:
            first = next((first for first in kind.first if f".{name}".endswith(f".{first}")), None)
            if first is not None and not _NO_WEIGHTS.search(prefix := name.removesuffix(first)):
                prefixes.setdefault(prefix, (kind, name))
    return [_set(table, kind, prefix, name, prefixes) for prefix, (kind, name) in prefixes.items()]


def _set(
    table: Mapping[str, tuple[str, Tensor]], kind: Names, prefix: str, first: str, prefixes: Iterable[str]
) -> Extract:
    """The tensors under ``prefix``, with the ``first`` of a model of that kind among them."""
    others = tuple(other for other in prefixes if len(other) > len(prefix) or not prefix.startswith(other))
    container = table[first][0]
    tensors, strangers, beside = {}, [], []
    for name, (home, tensor) in table.items():
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and kind.fits(inner):
            tensors[inner] = tensor
        elif name.startswith(prefix) and inner.partition(".")[0] in kind.roots:
            strangers.append(inner)
        elif home == container and tensor.ndim and not name.startswith(others):
            beside.append(name.removeprefix(f"{container}."))
    problem = ""
    if strangers:
        problem = f"{kind.layout} but for {few(strangers)}"
    elif not kind.whole(tensors):
        problem = f"{kind.layout}, but not all of it ({few([*tensors, *beside])})"
    n_averaged = f"{container}.n_averaged" if container else "n_averaged"
    averaged = n_averaged in table or _AVERAGE.search(prefix) is not None
    return Extract(prefix.rstrip("."), kind.layout, tensors, problem, tuple(beside), averaged)


def _same(one: Extract, other: Extract) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        tensor is other.tensors[name] or torch.equal(tensor, other.tensors[name])
        for name, tensor in one.tensors.items()
    )


def _without_weights(checkpoint: Any, table: Mapping[str, Any], sets: Sequence[Extract], kinds: Sequence[Names]) -> str:
    """Why a checkpoint has no weights of these kinds."""
    if not table:
        keys = f" with {few([repr(key) for key in checkpoint])}" if isinstance(checkpoint, Mapping) else ""
        return f"no tensors in it: it is a {type(checkpoint).__name__}{keys}"
    if sets:
        closest = min(sets, key=lambda one: len(table) - len(one.tensors))
        under = f" under {closest.key!r}" if closest.key else ""
        return f"no known layout of a model fits{under}: {closest.problem}"
    if len(kinds) == 1:
        return f"it is for another model: it has {few(list(table))}, and this one {few(kinds[0].first)}"
    return f"no known layout of a ConvNeXt has {few(list(table))}; known: {', '.join(kind.layout for kind in kinds)}"
