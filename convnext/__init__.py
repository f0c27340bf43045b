"""Train, measure and use a ConvNeXt on the images and the machine that you have."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.config import ModelSettings as ModelSettings
    from convnext.config import RunSettings as RunSettings
    from convnext.errors import UserError as UserError
    from convnext.evaluation.evaluator import evaluate as evaluate
    from convnext.inference.predictor import Prediction as Prediction
    from convnext.inference.predictor import Predictor as Predictor
    from convnext.models.convnext import ConvNeXt as ConvNeXt
    from convnext.models.registry import create_model as create_model
    from convnext.models.registry import list_models as list_models
    from convnext.recipes import recipe as recipe
    from convnext.training.train import Run as Run
    from convnext.training.train import train as train

# Loaded on first use, so that `import convnext` and the command's help do not wait for torch.
_HOMES = {
    "ConvNeXt": "models.convnext",
    "ModelSettings": "config",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "Run": "training.train",
    "RunSettings": "config",
    "UserError": "errors",
    "create_model": "models.registry",
    "evaluate": "evaluation.evaluator",
    "list_models": "models.registry",
    "recipe": "recipes",
    "train": "training.train",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import, and seldom asked for

        return version("convnext")
    if name not in _HOMES:
        raise AttributeError(f"module 'convnext' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convnext.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
