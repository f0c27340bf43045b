"""The authors' weights as a model that predicts."""

from torch import nn

from convnext.config import ModelSettings
from convnext.errors import SettingsError
from convnext.models import registry
from convnext.weights.catalogue import find
from convnext.weights.loading import start_from
from convnext.weights.model_info import ModelInfo
from convnext.weights.released import imagenet_classes


def released(name: str, tag: str) -> tuple[nn.Module, ModelInfo]:
    """A model with the authors' weights, and how they used it."""
    settings = registry.resolve(ModelSettings(name=name, weights=tag))
    weights = find(name, tag)
    classes = imagenet_classes()
    if weights.classes != len(classes):
        raise SettingsError(
            f"{name}:{tag} has the {weights.classes:,} classes of ImageNet-22K, whose names are not known here: "
            f"choose weights of ImageNet-1K, such as {name}:in1k"
        )
    model = registry.build(settings, weights.classes)
    start_from(model, settings, weights.classes)
    how = {"mean": weights.mean, "std": weights.std, "center_crop": weights.center_crop}
    return model, ModelInfo(model=settings, classes=classes, image_size=weights.image_size, **how)
