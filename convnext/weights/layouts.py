"""ConvNeXt weights from one library's names and shapes to another's, and back, without touching a value.

Every conversion goes through the authors' names, which `convnext.models.convnext.ConvNeXt` has too. A layout is a
table of rules ``official: its own``, read from left to right to write the layout and from right to left to read it.
"""

import re
from collections.abc import Collection, Iterable
from functools import cache

from torch import Tensor

from convnext.errors import CheckpointError, did_you_mean
from convnext.output import few
from convnext.weights.wrappers import Names

# Fields of the rules: {s} stage, {d} stage that starts with a downsampling, {even} 2s and {odd} 2s + 1, {b} block,
# {k} index in a downsampling, {n} which pointwise layer, {p} parameter, {model} prefix of transformers' V1 or V2.
_NUMBER = "(?:0|[1-9][0-9]{0,3})"
_FIELDS = {
    "s": _NUMBER,
    "d": "[1-9][0-9]{0,3}",
    "even": "(?:[1-9][0-9]{0,3})?[02468]",
    "odd": "(?:[1-9][0-9]{0,3})?[13579]",
    "b": _NUMBER,
    "k": "[01]",
    "n": "[12]",
    "p": "weight|bias",
    "t": "running_mean|running_var|num_batches_tracked",
    "model": r"(?:convnext(?:v2)?\.)?",  # a backbone of theirs has none
}

_TIMM = {
    "downsample_layers.0.{k}.{p}": "stem.{k}.{p}",
    "downsample_layers.{d}.{k}.{p}": "stages.{d}.downsample.{k}.{p}",
    "stages.{s}.{b}.gamma": "stages.{s}.blocks.{b}.gamma",
    "stages.{s}.{b}.dwconv.{p}": "stages.{s}.blocks.{b}.conv_dw.{p}",
    "stages.{s}.{b}.norm.{p}": "stages.{s}.blocks.{b}.norm.{p}",
    "stages.{s}.{b}.pwconv{n}.{p}": "stages.{s}.blocks.{b}.mlp.fc{n}.{p}",
    "stages.{s}.{b}.grn.gamma": "stages.{s}.blocks.{b}.mlp.grn.weight",
    "stages.{s}.{b}.grn.beta": "stages.{s}.blocks.{b}.mlp.grn.bias",
    "norm.{p}": "head.norm.{p}",
    "head.{p}": "head.fc.{p}",
}

_TORCHVISION = {
    "downsample_layers.0.{k}.{p}": "features.0.{k}.{p}",
    "downsample_layers.{d}.{k}.{p}": "features.{even}.{k}.{p}",
    "stages.{s}.{b}.gamma": "features.{odd}.{b}.layer_scale",
    "stages.{s}.{b}.dwconv.{p}": "features.{odd}.{b}.block.0.{p}",
    "stages.{s}.{b}.norm.{p}": "features.{odd}.{b}.block.2.{p}",
    "stages.{s}.{b}.pwconv1.{p}": "features.{odd}.{b}.block.3.{p}",
    "stages.{s}.{b}.pwconv2.{p}": "features.{odd}.{b}.block.5.{p}",
    "norm.{p}": "classifier.0.{p}",
    "head.{p}": "classifier.2.{p}",
}

_TRANSFORMERS = {
    "downsample_layers.0.0.{p}": "{model}embeddings.patch_embeddings.{p}",
    "downsample_layers.0.1.{p}": "{model}embeddings.layernorm.{p}",
    "downsample_layers.{d}.{k}.{p}": "{model}encoder.stages.{d}.downsampling_layer.{k}.{p}",
    "stages.{s}.{b}.gamma": "{model}encoder.stages.{s}.layers.{b}.layer_scale_parameter",
    "stages.{s}.{b}.dwconv.{p}": "{model}encoder.stages.{s}.layers.{b}.dwconv.{p}",
    "stages.{s}.{b}.norm.{p}": "{model}encoder.stages.{s}.layers.{b}.layernorm.{p}",
    "stages.{s}.{b}.pwconv{n}.{p}": "{model}encoder.stages.{s}.layers.{b}.pwconv{n}.{p}",
    "stages.{s}.{b}.grn.gamma": "{model}encoder.stages.{s}.layers.{b}.grn.weight",
    "stages.{s}.{b}.grn.beta": "{model}encoder.stages.{s}.layers.{b}.grn.bias",
    "norm.{p}": "{model}layernorm.{p}",
    "head.{p}": "classifier.{p}",
}

# The authors' isotropic models: one stage, and a stem without a norm.
_ISOTROPIC = {
    "downsample_layers.0.0.{p}": "stem.{p}",
    "stages.0.{b}.gamma": "blocks.{b}.gamma",
    "stages.0.{b}.dwconv.{p}": "blocks.{b}.dwconv.{p}",
    "stages.0.{b}.norm.{p}": "blocks.{b}.norm.{p}",
    "stages.0.{b}.pwconv{n}.{p}": "blocks.{b}.pwconv{n}.{p}",
    "norm.{p}": "norm.{p}",
    "head.{p}": "head.{p}",
}

_RULES: dict[str, dict[str, str]] = {
    # With the statistics of batch norm, which ours have besides (model.pool).
    "official": {name: name for name in (*_TIMM, "downsample_layers.{s}.1.{t}")},
    "isotropic": _ISOTROPIC,
    "torchvision": _TORCHVISION,
    "timm": _TIMM,
    "transformers": _TRANSFORMERS,
}

LAYOUTS: tuple[str, ...] = tuple(_RULES)
"""The known layouts: ``official`` is the hub; ``isotropic`` is what the authors' isotropic checkpoints have."""

_DOWNSAMPLING = r"downsample_layers\.[1-9]\d*\.1\.weight"  # of kernels
_POOLED = r"downsample_layers\.[1-9]\d*\.0\.weight"  # of kernels, where pooling follows; else of a norm

# First width of atto, femto, pico and nano, whose pointwise layers are 1x1 convolutions in timm, both V1 and V2.
_TIMM_CONVOLUTIONAL = (40, 48, 64, 80)


def detect_layout(names: Iterable[str]) -> str:
    """The layout that has all the names; CheckpointError, with the first few names that do not fit the closest, for
    none."""
    names = list(names)
    strangers = {layout: [name for name in names if _to_official(name, layout) is None] for layout in LAYOUTS}
    closest = min(LAYOUTS, key=lambda layout: len(strangers[layout]))
    if strangers[closest] or not names:
        close = f" ({closest} but for these)" if len(strangers[closest]) < len(names) else ""
        raise CheckpointError(
            f"no known layout of a ConvNeXt has {few(strangers[closest])}{close}; known layouts: {', '.join(LAYOUTS)}"
        )
    return closest


def names_of_layouts() -> tuple[Names, ...]:
    """What the tensors of a ConvNeXt are called in each of the `LAYOUTS`."""
    return tuple(map(_names, LAYOUTS))


def _names(layout: str) -> Names:
    models = ("convnext.", "convnextv2.", "") if layout == "transformers" else ("",)
    first = (_rename("downsample_layers.0.0.weight", _RULES[layout].items(), model) for model in models)
    templates = [own.replace("{model}", model) for own in _RULES[layout].values() for model in models]

    def whole(names: Collection[str]) -> bool:
        """With a block; and a classifier is behind a norm."""
        official = {_to_official(name, layout) for name in names}
        return "stages.0.0.dwconv.weight" in official and ("norm.weight" in official or "head.weight" not in official)

    return Names(
        layout=layout,
        first=tuple(name for name in first if name is not None),
        roots=frozenset(template.partition(".")[0] for template in templates),
        fits=lambda name: _to_official(name, layout) is not None,
        whole=whole,
    )


def is_official(names: Iterable[str]) -> bool:
    """Whether these are the names of our `convnext.models.convnext.ConvNeXt`."""
    names = set(names)
    return "downsample_layers.0.0.weight" in names and all(_to_official(name, "official") for name in names)


def convert(tensors: dict[str, Tensor], to: str, source: str | None = None) -> dict[str, Tensor]:
    """The same weights under the names and shapes of another of the `LAYOUTS`, as views in the same order; the layout
    that they are in is recognised where it is not given.

    timm builds its models of first width 40, 48, 64 and 80 with 1x1 convolutions for pointwise layers; weights of those
    widths get that shape. A classifier may be missing. What weights do not show must agree by itself: timm's
    convnext_xxlarge, for one, has another epsilon in its norms.

    Raises:
        CheckpointError: an unknown layout, a name that the source does not have, or a model that ``to`` cannot hold.
    """
    for layout in (to, source or to):
        if layout not in LAYOUTS:
            raise CheckpointError(f"no layout is called {layout!r}: {did_you_mean(layout, LAYOUTS)}")
    source = source or detect_layout(tensors)
    names = {name: _to_official(name, source) for name in tensors}
    if strangers := [name for name, official in names.items() if official is None]:
        raise CheckpointError(f"layout {source} has no {few(strangers)}: give the layout that the weights are in")
    official = {new: _reshape(tensors[old], new, "official") for old, new in names.items() if new is not None}
    scales = [name for name, tensor in official.items() if tensor.ndim == 1 and name.endswith(".weight")]
    if bare := [name for name in scales if f"{name.removesuffix('weight')}bias" not in official]:
        raise CheckpointError(
            f"no layout holds norms without a bias, such as RMSNorm ({few(bare)}): choose a model with layer norms"
        )

    model = "convnextv2." if any(".grn." in name for name in official) else "convnext."
    stem_norm = official.get("downsample_layers.0.1.weight")
    targets = {
        layout: {name: _rename(name, rules.items(), model) for name in official} for layout, rules in _RULES.items()
    }
    homeless = {layout: [name for name, new in names.items() if new is None] for layout, names in targets.items()}
    peculiar = ["a stem without a norm (downsample_layers.0.1)"] if stem_norm is None else []
    if any(re.fullmatch(_DOWNSAMPLING, name) and weight.shape[-1] > 2 for name, weight in official.items()):
        peculiar.append("convolutions that see over their patches' edges (model.overlap)")
    if any(re.fullmatch(_POOLED, name) and weight.ndim == 4 for name, weight in official.items()):
        peculiar.append("convolutions before pooling (model.pool)")
    for layout in ("torchvision", "timm", "transformers"):
        homeless[layout] = peculiar + homeless[layout]
    if homeless[to]:
        kind = "ConvNeXt V2" if model == "convnextv2." else "ConvNeXt"
        fitting = " or ".join(layout for layout in LAYOUTS if not homeless[layout])
        raise CheckpointError(
            f"layout {to} cannot hold this {kind}: it has no place for {few(homeless[to])}; use {fitting}"
        )
    width = None if stem_norm is None else stem_norm.numel()
    return {new: _reshape(official[old], old, to, width) for old, new in targets[to].items() if new is not None}


def not_built(official: dict[str, Tensor], layout: str) -> list[str]:
    """What the model of these weights, under official names, has that the library of a layout builds no ConvNeXt with:
    the layout holds the weights, and their user has to write the model."""
    blocks = {name: tensor for name, tensor in official.items() if name.startswith("stages.")}
    kernels = {tensor.shape[-1] for name, tensor in blocks.items() if name.endswith(".dwconv.weight")}
    hidden = [tensor.shape for name, tensor in blocks.items() if name.endswith(".pwconv1.weight")]
    ratios = {shape[0] / shape[1] for shape in hidden}
    stages, patch = len({name.split(".")[1] for name in blocks}), official["downsample_layers.0.0.weight"].shape[-1]
    scaled, is_v2 = "stages.0.0.gamma" in official, any(".grn." in name for name in official)
    facts = [
        (("timm",), stages != 4, f"{stages} stages"),
        (("torchvision", "transformers"), kernels != {7}, f"kernels of {_listed(kernels)} pixels"),
        (("torchvision", "timm", "transformers"), ratios != {4.0}, f"an MLP ratio of {_listed(ratios)}"),
        (("torchvision",), patch != 4, f"a stem of {patch} x {patch} pixels"),
        (("timm",), patch not in (1, 3, 4), f"a stem of {patch} x {patch} pixels"),
        (("torchvision",), not scaled, "blocks without layer scale"),
        (("transformers",), scaled and is_v2, "layer scale beside GRN"),
    ]
    return [fact for layouts, holds, fact in facts if layout in layouts and holds]


def _listed(numbers: Iterable[float]) -> str:
    return " and ".join(f"{number:g}" for number in sorted(numbers))


def _to_official(name: str, layout: str) -> str | None:
    return _rename(name, ((own, official) for official, own in _RULES[layout].items()))


def _rename(name: str, rules: Iterable[tuple[str, str]], model: str = "") -> str | None:
    """The name after the first rule that it matches; None where there is none."""
    for old, new in rules:
        if match := _pattern(old).fullmatch(name):
            fields = {"model": model} | match.groupdict()
            steps = {"s": 1, "d": 1, "even": 2, "odd": 2}
            stage = next((int(fields[field]) // step for field, step in steps.items() if field in fields), 0)
            return new.format(**(fields | {"s": stage, "d": stage, "even": 2 * stage, "odd": 2 * stage + 1}))
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda field: f"(?P<{field[1]}>{_FIELDS[field[1]]})", re.escape(template)))


def _reshape(tensor: Tensor, name: str, layout: str, width: int | None = None) -> Tensor:
    """The tensor of an official name in the shape that the layout, with a first stage of ``width``, gives it."""
    shape: tuple[int, ...]
    if re.fullmatch(r"stages\.\d+\.\d+\.gamma", name):
        shape = (-1, 1, 1) if layout == "torchvision" else (-1,)
    elif ".grn." in name:
        shape = (-1,) if layout == "timm" else (1, 1, 1, -1)
    elif re.search(r"\.pwconv[12]\.weight$", name):
        shape = tensor.shape[:2]
        if layout == "timm" and width in _TIMM_CONVOLUTIONAL:
            shape += (1, 1)
    else:
        return tensor
    try:
        return tensor.reshape(shape)
    except RuntimeError:
        raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, which no ConvNeXt layout gives it") from None
