"""A folder as the Hugging Face Hub has them, for this package, and for timm and transformers where they have the model.

``model.safetensors`` has timm's names, and ``config.json`` says how timm builds the model; transformers reads the same
files by its timm wrapper. ``model.json`` is that of a run's checkpoint, ``training.json`` says how it was trained, and
``README.md`` is the model card.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from convnext.config import ModelSettings, RunSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.inference.backends import ExportInfo, Images
from convnext.inference.backends.eager import EagerBackend
from convnext.inference.export import model_card
from convnext.inference.export.formats import Source
from convnext.models.variants import VARIANTS
from convnext.output import say
from convnext.runs import checkpoint as checkpoints
from convnext.storage.files import writing
from convnext.weights.catalogue import is_weights_file
from convnext.weights.layouts import convert, is_official
from convnext.weights.model_info import ModelInfo

_SAME = 1e-4  # of a logit, however the folder is read


def write(source: Source, path: Path) -> None:
    """Write the model as a new folder ``path``; SettingsError for another precision than fp32, or for pre-processing
    inside."""
    if source.info.precision != "fp32" or source.info.preprocessing:
        raise SettingsError(
            "the Hub's format has fp32 weights, and says in config.json how images are prepared: leave --precision and "
            "--include-preprocessing out"
        )
    info = source.info.model
    problem = timm_problem(info.model)
    state = {name: tensor.detach().cpu() for name, tensor in source.model.state_dict().items()}
    if problem is None and is_official(state):
        state = convert(state, "timm", "official")
    path.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    with writing(path / "model.safetensors") as weights:  # which names it where it cannot be written
        weights.write_bytes(save(tensors, {"format": "pt"}))
    if problem is not None:
        say(f"the folder is for convnext alone; timm and transformers have no such model: {problem}")
    else:
        _write_json(path / "config.json", timm_config(info, state))
    (path / "model.json").write_text(_anywhere(info).model_dump_json(indent=2), encoding="utf-8")
    if source.settings is not None:
        training = checkpoints.TrainingState(
            settings=_public(source.settings),
            versions={"convnext": source.info.version},
            fingerprints=source.info.fingerprints,
        )
        (path / "training.json").write_text(training.model_dump_json(indent=2), encoding="utf-8")
    checkpoints.write_digests(path)  # of all but the card, which is to be edited
    (path / "README.md").write_text(model_card.model_card(source, problem), encoding="utf-8")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def timm_problem(model: ModelSettings) -> str | None:
    """Why timm, and with it transformers, has no such model: the setting at fault; None where it has."""
    if model.name.startswith("timm:"):
        return None
    if model.name in ("resnet18", "resnet50"):
        return None if model.patch_size == 4 else f"model.patch_size is {model.patch_size}, and its stems have 4"
    if model.name not in VARIANTS:
        return f"model.name is {model.name}"
    if len(model.depths or ()) != 4:
        return f"model.depths has {len(model.depths or ())} stages, and its ConvNeXt has 4"
    if model.patch_size not in (1, 3, 4):  # at 2 it halves the first stage, and past 4 the last stage is not halved
        return f"model.patch_size is {model.patch_size}, and its stems have 1, 3 or 4"
    if model.mlp_ratio != 4:
        return f"model.mlp_ratio is {model.mlp_ratio}, and its blocks have 4"
    for name in ("overlap", "pool", "whitening"):
        if getattr(model, name):
            return f"model.{name} is set, and its patches are plain"
    return None if model.stem_norm else "model.stem_norm is not set, and its stem has a norm"


def timm_config(info: ModelInfo, state: dict[str, Tensor]) -> dict[str, Any]:
    """What timm and transformers build the model from; ``state`` has timm's names."""
    model, channels = info.model, info.channels
    architecture, arguments = model.name.removeprefix("timm:"), dict[str, Any]()
    if channels != 3:
        arguments["in_chans"] = channels
    if model.name in VARIANTS:
        # timm drops an argument that is None, so that a model without layer scale has to be one of V2.
        version = "convnextv2_" if model.layer_scale is None else "convnext_"
        architecture = model.name if model.name.startswith(version) else f"{version}tiny"
        arguments |= {
            "depths": model.depths,
            "dims": model.dims,
            "patch_size": model.patch_size,
            "kernel_sizes": model.kernel_size,
            "use_grn": model.grn,
            "conv_mlp": state["stages.0.blocks.0.mlp.fc1.weight"].ndim == 4,
        }
    return {
        "architecture": architecture,
        "num_classes": len(info.classes),
        "label_names": info.classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": len(info.classes),
            "input_size": (channels, info.image_size, info.image_size),
            "interpolation": "bicubic",
            "crop_pct": info.center_crop,
            "crop_mode": "center",
            "mean": info.mean,
            "std": info.std,
        },
    }


def _anywhere(info: ModelInfo) -> ModelInfo:
    """The same without a path of this machine."""
    return info.model_copy(update={"model": _without_path(info.model)})


def _public(settings: RunSettings) -> RunSettings:
    data = {"root": None, "exclude": None, "name": settings.data.name if model_card.data_name(settings) else "folder"}
    public: RunSettings = settings.replace(output=RunSettings().output, data=data, model=_without_path(settings.model))
    return public


def _without_path(model: ModelSettings) -> ModelSettings:
    if model.weights is None or not is_weights_file(model.weights):
        return model
    return ModelSettings(**model.model_dump(exclude={"weights", "weights_key"}))


def open_folder(path: Path, info: ExportInfo) -> "HubFolderBackend":
    """What computes from a folder that `write` wrote."""
    return HubFolderBackend(path, info)


class HubFolderBackend:
    """The folder as everybody reads it who is here: this package, and timm if it is installed and has the model.

    Raises:
        CheckpointError: when called: they do not agree.
    """

    name = "hub"
    preprocessing = False

    def __init__(self, path: Path, export: ExportInfo) -> None:
        self.path, self.export = path, export
        model, self.info = checkpoints.load_model(path)
        self.readers: dict[str, nn.Module] = {"convnext": model}
        if (path / "config.json").is_file() and find_spec("timm") is not None:
            import timm

            self.readers["timm"] = timm.create_model(f"local-dir:{path}", pretrained=True)
        self._backends = [EagerBackend(reader, self.info, "cpu") for reader in self.readers.values()]

    def __call__(self, images: Images) -> NDArray[np.float32]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``."""
        logits = self._backends[0](images)
        if not np.isfinite(logits).all():  # which no comparison with the source lets pass
            return logits
        for reader, backend in zip(self.readers, self._backends, strict=True):
            difference = float(np.abs(backend(images) - logits).max())
            if not difference <= _SAME:  # NaN is not, either
                raise CheckpointError(f"{reader} reads other logits from {self.path}: they differ by {difference:.2g}")
        return logits
