"""A program of `torch.export`, ``.pt2``: the graph and its weights, without this package."""

import io
import warnings
from pathlib import Path

import torch

from convnext.errors import SettingsError
from convnext.inference.backends import METADATA
from convnext.inference.export.formats import Source, capture
from convnext.storage.files import writing


def write(source: Source, path: Path) -> None:
    """Write the model as ``path``; SettingsError for int8."""
    if source.info.precision == "int8":
        raise SettingsError("torch has no int8 export here: choose --format onnx or openvino")
    if source.info.preprocessing:
        raise SettingsError("torch has no --include-preprocessing: choose --format onnx or openvino")
    buffer = io.BytesIO()  # for PyTorch ends the process where a disk is full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of views of tensors, which are saved whole
        torch.export.save(capture(source), buffer, extra_files={METADATA: source.info.model_dump_json()})
    with writing(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())
