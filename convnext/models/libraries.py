"""Classifiers of timm and torchvision, under this package's settings.

Of `convnext.config.ModelSettings` they take ``in_channels``, and ``stochastic_depth`` where they have it.
"""

import difflib
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from convnext.errors import SettingsError, UserError, did_you_mean


def names(library: str) -> list[str]:
    """The classifiers of ``timm`` or ``torchvision``; SettingsError for another library, UserError where it is not
    installed."""
    if library not in ("timm", "torchvision"):
        raise SettingsError(f"no library is called {library!r}: {did_you_mean(library, ('timm', 'torchvision'))}")
    if library == "timm":
        return list(_timm().list_models())
    from torchvision import models

    return list(models.list_models(module=models))


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError("models timm:NAME need timm, which is not installed: pip install timm") from None


@cache
def builder(library: str, name: str) -> Callable[..., nn.Module]:
    """A function ``(num_classes, in_channels=3)`` for a model of ``timm`` or ``torchvision``, with
    ``stochastic_depth=0.0`` where it has it.

    Raises:
        SettingsError: no such model; the message names close matches.
        UserError: the library is not installed.
    """
    known = names(library)
    if not (_timm().is_model(name) if library == "timm" else name in known):
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"`convnext models --library {library}` lists them"
        raise SettingsError(f"{library} has no model {name!r}: {hint}")
    build = _build_timm if library == "timm" else _build_torchvision

    def with_depth(num_classes: int, in_channels: int = 3, stochastic_depth: float = 0.0) -> nn.Module:
        return build(name, num_classes, in_channels, stochastic_depth)

    def without_depth(num_classes: int, in_channels: int = 3) -> nn.Module:
        return build(name, num_classes, in_channels, None)

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        try:
            with_depth(2, 3, 0.1)
        except TypeError:  # no other sign tells whether a model takes it
            return without_depth
    return with_depth


def check_image_size(library: str, name: str, image_size: int) -> None:
    """Refuse, with a SettingsError, images of a side that the model does not take: it gets one on the meta device."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.inference_mode():
        model = builder(library, name)(num_classes=2).eval()
        try:
            model(torch.empty(1, 3, image_size, image_size))
        except NotImplementedError:  # an operation that the meta device does not have says nothing of the size
            return
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(
                f"{library}:{name} does not take images of {image_size} px ({reason}): change data.image_size"
            ) from None


def _build_timm(name: str, num_classes: int, in_channels: int, stochastic_depth: float | None) -> nn.Module:
    options: dict[str, Any] = {} if stochastic_depth is None else {"drop_path_rate": stochastic_depth}
    if in_channels != 3:
        options["in_chans"] = in_channels
    create = _timm().create_model
    try:
        return _anywhere(lambda: create(name, num_classes=num_classes, **options))
    except TypeError as error:
        if "in_chans" not in str(error):
            raise
        raise SettingsError(f"timm:{name} takes colour images alone, not {in_channels} channels") from None


def _build_torchvision(name: str, num_classes: int, in_channels: int, stochastic_depth: float | None) -> nn.Module:
    from torchvision import models
    from torchvision.ops import StochasticDepth

    options: dict[str, Any] = {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):  # without the second classifiers of their training
        options |= {"aux_logits": False, "init_weights": True}
    model = _anywhere(lambda: models.get_model(name, **options))
    # Some of its functions have a rate of their own and take no other: the layers do.
    drops = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    if stochastic_depth is not None and not drops:
        raise TypeError(f"{name} has no stochastic depth")
    for number, drop in enumerate(drops):
        drop.p = (stochastic_depth or 0.0) * number / max(len(drops) - 1, 1)
    if in_channels != 3:
        _replace_first_convolution(name, model, in_channels)
    return model


def _anywhere(create: Callable[[], nn.Module]) -> nn.Module:
    """The model on the device that is the default now; also on the meta device where its constructor reads tensors."""
    try:
        return create()
    except NotImplementedError:
        with torch.device("cpu"):
            model = create()
        return model.to(torch.get_default_device())


def _replace_first_convolution(name: str, model: nn.Module, in_channels: int) -> None:
    """Another first convolution, of PyTorch's initial weights."""
    first = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    if len(first) != 1:
        raise SettingsError(f"torchvision:{name} takes colour images alone, not {in_channels} channels")
    old: Any = model.get_submodule(first[0])
    options = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
    model.set_submodule(first[0], nn.Conv2d(in_channels, old.out_channels, old.kernel_size, **options))
