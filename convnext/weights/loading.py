"""Weights into a model, and out into a file: complete, or not at all."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from convnext.config import ModelSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.output import few
from convnext.storage.files import check_new, writing
from convnext.weights import released as weights
from convnext.weights.catalogue import AUTO, SUFFIXES, Weights, find, is_weights_file
from convnext.weights.files import model_info, read_convnext, read_own, run_info, weights_file
from convnext.weights.layouts import convert, is_official
from convnext.weights.model_info import ModelInfo


def start_from(
    model: nn.Module, settings: ModelSettings, num_classes: int, class_names: Sequence[str] | None = None
) -> str | None:
    """Load the weights that the settings name into the model, which was built from them; returns a line that says what
    was chosen, left out or made new, or None.

    Resolved, ``settings.weights`` is a released tag; a run's or checkpoint's folder; or a file, of a ConvNeXt in any
    layout, of another model under its own names. A run's classifier is taken where its classes are ``class_names``, in
    whatever order; where no names are known, and for other weights, where it has ``num_classes``.

    Raises:
        UserError: no such weights, or they cannot be fetched or read, or do not fit the model.
    """
    assert settings.weights is not None
    own, notes, info = model.state_dict(), list[str](), None
    official = is_official(own)
    if is_weights_file(settings.weights):
        path = weights_file(Path(settings.weights))
        info, key = model_info(path), settings.weights_key
        extract = read_convnext(path, key) if official else read_own(path, own, key)
        notes += extract.notes
    else:
        path = weights.fetch(settings.name, settings.weights)
        extract = read_convnext(path)
    state = extract.tensors
    if official:
        state = weights.adapt_input_channels(convert(state, "official", extract.layout), settings.in_channels or 3)
    classifier = {"head.weight", "head.bias"} if official else _classifier(model, num_classes)
    theirs = info.classes if info is not None else None
    head, note = _fit_head({name: state[name] for name in classifier & state.keys()}, num_classes, theirs, class_names)
    may_miss = set() if head else classifier
    if not classifier & state.keys():  # a backbone, which may have no norm either
        may_miss |= {"norm.weight", "norm.bias"} if official else set()
    rest = {name: tensor for name, tensor in state.items() if name not in classifier}
    load_state(model, rest | head, path, may_miss)
    notes += [note] if note else []
    return f"{settings.weights}: {'; '.join(notes)}" if notes else None


def _classifier(model: nn.Module, num_classes: int) -> set[str]:
    """Names of the tensors of the last layer with so many outputs."""
    for name, module in reversed(list(model.named_modules())):
        if num_classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None)):
            return {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
    return set()


def _fit_head(
    head: dict[str, Tensor], num_classes: int, theirs: Sequence[str] | None, ours: Sequence[str] | None
) -> tuple[dict[str, Tensor], str | None]:
    """A classifier's tensors for a model of ``num_classes``, or none where it is one of other classes, and a line that
    says what was done; ``theirs`` and ``ours`` are the names of the classes, where they are known."""
    made_new = f"the model's own, of {num_classes}, starts from random weights" if num_classes else "the model has none"
    if not head:
        return {}, f"it has no classifier: {made_new}" if num_classes else None
    count = len(next(iter(head.values())))
    if theirs is None or ours is None or tuple(theirs) == tuple(ours):
        if count == num_classes:
            return head, None
    elif sorted(theirs) == sorted(ours) and count == num_classes:
        order = torch.tensor([theirs.index(name) for name in ours])
        return {name: tensor[order] for name, tensor in head.items()}, "its classes are put into the images' order"
    else:
        return {}, f"the classifier of other classes ({few(theirs)}) is left out: {made_new}"
    return {}, f"the classifier of {count} classes is left out: {made_new}"


def origin(settings: ModelSettings) -> Weights | ModelInfo | None:
    """How the weights that the settings name were trained: released ones, or those of a run; None where that is not
    known. SettingsError for a tag that nobody released."""
    if settings.weights is None:
        return None
    if is_weights_file(settings.weights):
        return run_info(settings.weights)
    if settings.weights == AUTO:
        raise SettingsError("model.weights auto is for recipe folder, which looks at its images: give a tag or none")
    return find(settings.name, settings.weights)


def load_state(model: nn.Module, state: dict[str, Tensor], origin: object, may_miss: Collection[str] = ()) -> None:
    """Load tensors from ``origin`` into the model; CheckpointError where they do not `check_fit`."""
    check_fit(model, state, origin, may_miss)
    model.load_state_dict(state, strict=False)


def check_fit(model: nn.Module, state: dict[str, Tensor], origin: object, may_miss: Collection[str] = ()) -> None:
    """Refuse tensors from ``origin`` unless every name and shape is as the model has it, but for names it ``may_miss``.

    Raises:
        CheckpointError: missing, unexpected or other-shaped tensors; the message names the first few.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and name not in may_miss]
    problems = [f"missing {name}" for name in missing]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    both = [(name, tensor, expected[name]) for name, tensor in state.items() if name in expected]
    problems += [f"{name} is {tuple(x.shape)}, not {tuple(y.shape)}" for name, x, y in both if x.shape != y.shape]
    problems += [f"{name} has {x.dtype}" for name, x, y in both if x.is_floating_point() != y.is_floating_point()]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{origin} does not fit the model: {'; '.join(problems[:3])}{more}")


def check_target(path: Path) -> None:
    """Refuse, with a SettingsError, a file that `write` could not write, before there is work to lose."""
    if path.suffix not in SUFFIXES:
        raise SettingsError(f"{path}: a weights file ends in {', '.join(SUFFIXES)}")
    check_new(path)


def write(tensors: dict[str, Tensor], path: Path, layout: str = "official") -> None:
    """Write a new weights file as users of that layout have it: safetensors, or PyTorch's with the tensors under
    ``model`` for the authors' code, and for the others as ``load_state_dict`` takes them."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    buffer = io.BytesIO()  # for PyTorch ends the process where a disk is full
    if path.suffix == ".safetensors":
        buffer.write(save(contiguous))
    else:
        torch.save({"model": contiguous} if layout in ("official", "isotropic") else contiguous, buffer)
    with writing(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())
