"""Name to model: one door to the published ConvNeXts, to registered models, and to those of timm and torchvision.

A new model needs one thing, beside its definition::

    @register_model("mynet")
    def mynet(num_classes: int, in_channels: int = 3, patch_size: int = 4) -> nn.Module: ...

Where that stands in a file of this folder, the model is known by reading the files, without importing them; in a
program of your own, from the moment it is called. What it takes of `convnext.config.ModelSettings` is what its
parameters are named after.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import convnext.models
from convnext.config import ModelSettings
from convnext.errors import SettingsError, did_you_mean
from convnext.models.variants import VARIANTS, ConvNeXtName, convnext_cost, published
from convnext.output import say
from convnext.weights.catalogue import AUTO, is_weights_file

if TYPE_CHECKING:
    from torch import nn

    from convnext.models.convnext import ConvNeXt
    from convnext.weights.model_info import ModelInfo

    B = TypeVar("B", bound=Callable[..., nn.Module])

LIBRARIES = ("timm", "torchvision")
OWN = "own"  # the name of a module that a program trains without registering it

_ORIGIN = {"weights", "weights_key"}  # settings that say where weights come from, which every model has
# Of a ConvNeXt with released weights, or a model with those of a run, which bring all the rest.
_FREE_BESIDE_WEIGHTS = _ORIGIN | {"name", "in_channels", "stochastic_depth", "head_init_scale", "init"}
ARCHITECTURE = {f"model.{name}" for name in ModelSettings.model_fields.keys() - _FREE_BESIDE_WEIGHTS}
"""The settings, by dotted name, that weights bring with them, beside the model's name."""


@dataclass(frozen=True)
class Model:
    """What a name stands for: a function of ``num_classes`` and the settings in ``defaults``, the fields of
    `ModelSettings` that the model takes, each with the value where it is left open."""

    builder: "Callable[..., nn.Module]"
    defaults: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """What is known of a model without building it: where it is published, its parameters with 1,000 classes and 3
    channels, and its multiply-adds for one image of 224 px, in 1e9; None where nobody stated it."""

    source: str = ""
    parameters: int | None = None
    gmacs: float | None = None


_models: dict[str, Model] = {}
_entries: dict[str, Entry] = {}


def register_model(
    name: str, *, source: str = "", parameters: int | None = None, gmacs: float | None = None
) -> "Callable[[B], B]":
    """Decorate a function or class ``(num_classes, **settings) -> nn.Module`` to be known as model ``name``, which has
    no colon, with what an `Entry` says of it.

    In a file of ``convnext/models/`` all arguments are literals, for they are read without running the file.

    Raises:
        SettingsError: the name belongs to another model.
        TypeError: a parameter without a default that is not ``num_classes`` or ``in_channels``.
    """

    def register(builder: "B") -> "B":
        known = _models.get(name)
        home = known.builder.__module__ if known else _files().get(name, (builder.__module__,))[0]
        if name in VARIANTS or ":" in name or home != builder.__module__:
            raise SettingsError(f"register_model: the name {name!r} belongs to another model: choose a new one")
        _models[name] = Model(builder, _defaults(builder))
        _entries[name] = Entry(source, parameters, gmacs)
        return builder

    return register


def _defaults(builder: "Callable[..., nn.Module]") -> dict[str, Any]:
    """The settings among a builder's parameters, with their defaults."""
    parameters = inspect.signature(builder).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "num_classes"]
    fields = ModelSettings.model_fields.keys() - _ORIGIN - {"name"}
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name != "in_channels":
            raise TypeError(f"register_model: parameter {parameter.name!r} of {builder.__name__} needs a default")
    return {p.name: 3 if p.default is p.empty else p.default for p in named if p.name in fields}


@cache
def _files() -> dict[str, tuple[str, Entry]]:
    """Names registered in this folder's files, each with its module, and what the decorator says of it."""
    registered = {}
    for path in (path for folder in convnext.models.__path__ for path in sorted(Path(folder).glob("*.py"))):
        source = path.read_text(encoding="utf-8")
        if "\n@register_model(" not in source:
            continue
        for node in ast.parse(source).body:
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register_model":
                    arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                    name = ast.literal_eval(call.args[0])
                    registered[name] = f"{__package__}.{path.stem}", Entry(**arguments)
    return registered


def entries() -> dict[str, Entry]:
    """The models of this package and those registered by the program, by name; imports none of them."""
    variants = {}
    for name, variant in VARIANTS.items():
        parameters, macs = convnext_cost(resolve(ModelSettings(name=name)))
        variants[str(name)] = Entry(variant.source, parameters, macs / 1e9)
    return variants | {name: entry for name, (_, entry) in _files().items()} | _entries


def list_models(library: Literal["timm", "torchvision"] | None = None) -> list[str]:
    """Names for `create_model`, ``--model.name`` and ``convnext models``: our own and those that the program
    registered, or the classifiers of a library, as ``timm:NAME`` or ``torchvision:NAME``; UserError where it is not
    installed."""
    if library is None:
        return list(dict.fromkeys([*VARIANTS, *_files(), *_models]))
    from convnext.models import libraries

    return [f"{library}:{name}" for name in libraries.names(library)]


def find(name: str) -> Model:
    """The model of that name; SettingsError, with close matches, where there is none; UserError where its library is
    not installed."""
    if (variant := published(name)) is not None:
        fields = ModelSettings.model_fields
        free = {key: field.default for key, field in fields.items() if key not in _ORIGIN | {"name", "step"}}
        return Model(_convnext, {key: getattr(variant, key, default) for key, default in free.items()})
    if name == OWN:
        return Model(_own, {"in_channels": 3})
    library, _, own_name = name.partition(":")
    if own_name and library in LIBRARIES:
        from convnext.models import libraries

        builder = libraries.builder(library, own_name)
        return Model(builder, _defaults(builder))
    if name not in _models and name in _files():
        importlib.import_module(_files()[name][0])
    if name not in _models:
        raise SettingsError(f"no model is called {name!r}: {did_you_mean(name, list_models())}")
    return _models[name]


def _convnext(**settings: Any) -> "ConvNeXt":
    from convnext.models.convnext import ConvNeXt

    return ConvNeXt(**settings)


def _own(**_: Any) -> "nn.Module":
    raise SettingsError(
        "the run trained a module of a program's own, which only that program can make: give it to train, evaluate or "
        "Predictor.load as model=…, or register it with register_model before the training"
    )


def resolve(settings: ModelSettings, in_channels: int = 3) -> ModelSettings:
    """The settings with every None taken from the named model's own; those that it does not take are left out.

    Raises:
        SettingsError: unknown name, depths and dims that do not fit each other, or weights that nobody released.
    """
    model = find(settings.name)
    if settings.step is not None and "step" not in model.defaults:
        raise SettingsError(f"model.step belongs to model 'roadmap', and the model is {settings.name!r}")
    if settings.weights not in (None, AUTO) and not is_weights_file(str(settings.weights)):
        if settings.name not in VARIANTS:
            raise SettingsError(
                f"model.weights: nobody released weights {settings.weights!r} of {settings.name} that could be had "
                f"here: give a file with tensors under its own names, or leave it out"
            )
        # Released weights fit their own architecture alone, whatever a recipe has for its short runs.
        settings = ModelSettings(**settings.model_dump(include=_FREE_BESIDE_WEIGHTS))
    given = {name: getattr(settings, name) for name in model.defaults}
    values = {name: default if _is_open(name, given[name]) else given[name] for name, default in model.defaults.items()}
    values["in_channels"] = settings.in_channels or in_channels
    resolved = ModelSettings(**settings.model_dump(include={"name", *_ORIGIN}), **values)
    resolved.check_stages()
    return resolved


def follow_weights(settings: ModelSettings, given: Collection[str] = ()) -> tuple[ModelSettings, "ModelInfo | None"]:
    """The settings with the architecture of the run that ``settings.weights`` names, if it names one, and how that
    run's weights are used. What the user gave (``given``, dotted names) has to agree with it.

    Raises:
        SettingsError: it does not; or nothing has that name.
        CheckpointError: what it names is not there, no checkpoint, or damaged.
    """
    from convnext.weights.files import run_info

    if settings.weights is None or (info := run_info(settings.weights)) is None:
        return settings, None
    architecture = info.model.model_dump(exclude=_FREE_BESIDE_WEIGHTS - {"name"})
    for name, value in architecture.items():
        if f"model.{name}" in given and (own := getattr(settings, name)) != value:
            raise SettingsError(f"model.{name} is {own}, but that of {settings.weights} is {value}: leave it out")
    return settings.replace(**architecture), info


def _is_open(name: str, value: object) -> bool:
    return value in (None, "variant") and value == ModelSettings.model_fields[name].default


def check_given(settings: ModelSettings, given: Collection[str]) -> None:
    """Refuse settings that the user gave, and that the named model does not take.

    Raises:
        SettingsError: ``given``, dotted names such as ``model.depths``, has such; or the model's name is unknown.
    """
    known = {"name", *_ORIGIN, *find(settings.name).defaults}
    for name, field in ModelSettings.model_fields.items():
        if name not in known and f"model.{name}" in given and getattr(settings, name) != field.default:
            own = ", ".join(f"model.{other}" for other in sorted(known - {"name"}))
            raise SettingsError(f"model.{name}: {settings.name} has no such setting; leave it out (it has {own})")


def describe(settings: ModelSettings) -> str:
    """What the resolved settings build, in a few words."""
    if settings.name in VARIANTS:
        depths, dims = (" ".join(map(str, sizes or ())) for sizes in (settings.depths, settings.dims))
        return f"ConvNeXt{' V2' if settings.grn else ''} of depths {depths} and dims {dims}"
    values = settings.model_dump(exclude={"name", *_ORIGIN}, exclude_defaults=True)
    shown = {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    return ", ".join([settings.name, *(f"{name} {value}" for name, value in shown.items())])


def check_image_size(settings: ModelSettings, image_size: int) -> None:
    """Refuse images too small for the model of these resolved settings, as far as that is known beforehand.

    Raises:
        SettingsError: the last stage's feature map would be empty, or a library's model does not take that size.
    """
    library, _, own_name = settings.name.partition(":")
    if own_name and library in LIBRARIES:
        from convnext.models import libraries

        libraries.check_image_size(library, own_name, image_size)
    elif settings.patch_size is not None and settings.name in (*VARIANTS, *_files()):
        stages = len(settings.depths or (0, 0, 0, 0))
        # Whitening of stride 1 takes a pixel from each side of the image, as `ConvNeXt` has it.
        smallest = settings.patch_size * 2 ** (stages - 1) + (settings.whitening and settings.patch_size % 4 != 0)
        if image_size < smallest:
            raise SettingsError(
                f"images of {image_size} px are too small for the {stages} stages of {settings.name} behind a stem of "
                f"patch size {settings.patch_size}, which need {smallest} px: raise data.image_size, or lower "
                f"model.patch_size or the number of stages (model.depths, model.dims)"
            )


def cost(settings: ModelSettings, image_size: int = 224, num_classes: int = 1000) -> tuple[int, int]:
    """Parameters of the model of these resolved settings, and its multiply-adds for one square image of so many pixels
    a side; of a ConvNeXt without importing torch."""
    if settings.name in VARIANTS:
        return convnext_cost(settings, image_size, num_classes)
    import torch

    from convnext.models.summary import count_gmacs, count_parameters

    with torch.device("meta"):
        model = build(settings, num_classes)
    return count_parameters(model), round(1e9 * count_gmacs(model, image_size, settings.in_channels or 3))


def build(settings: ModelSettings, num_classes: int) -> "nn.Module":
    """The model of the settings, with random weights; errors are those of `resolve`."""
    settings, model = resolve(settings), find(settings.name)
    return model.builder(num_classes=num_classes, **{name: getattr(settings, name) for name in model.defaults})


@overload
def create_model(name: ConvNeXtName, num_classes: int | None = None, **settings: Any) -> "ConvNeXt": ...
@overload
def create_model(name: str | None = None, num_classes: int | None = None, **settings: Any) -> "nn.Module": ...
def create_model(name: str | None = None, num_classes: int | None = None, **settings: Any) -> "nn.Module":
    """Build a model by name, or from a run: ``create_model(weights="runs/digits")``.

    Args:
        name: one of `list_models`, or ``timm:NAME`` or ``torchvision:NAME`` for a classifier of that library; None for
            that of the run whose weights are given.
        num_classes: classes of the classifier; 0 leaves a ConvNeXt's out; None takes the run's, and else 1,000.
        settings: any field of `convnext.config.ModelSettings` that the model has, such as ``depths`` or
            ``patch_size``. Without ``weights`` they are random; with a released tag they are downloaded once; of a run
            or a file they are read. A classifier of other classes is left out with a line on standard error.

    Returns:
        A module from images ``(N, C, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        SettingsError: unknown name or setting, or an impossible value.
        UserError: the weights cannot be had, or do not fit; a library is not installed.
    """
    known = ["num_classes", *ModelSettings.model_fields]
    if unknown := [key for key in settings if key not in known]:
        raise SettingsError("; ".join(f"no argument is called {key}: {did_you_mean(key, known)}" for key in unknown))
    given = {f"model.{key}" for key in settings}
    chosen = ModelSettings(**settings) if name is None else ModelSettings(name=name, **settings)
    chosen, info = follow_weights(chosen, given if name is None else given | {"model.name"})
    if name is None and info is None:
        raise SettingsError("which model? give its name, or weights=… of a run")
    check_given(chosen, given)
    resolved = resolve(chosen, info.channels if info is not None else 3)
    if num_classes is None:
        num_classes = len(info.classes) if info is not None else 1000
    model = build(resolved, num_classes)
    if resolved.weights is not None:
        from convnext.weights.loading import start_from

        if note := start_from(model, resolved, num_classes):
            say(note)
    return model
