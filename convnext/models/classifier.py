"""The last layer of a model under mixed precision."""

import torch
from torch import Tensor, nn


class Classifier(nn.Linear):
    """A linear layer that computes in the precision of its weights under autocast, too: of logits in bf16, with their
    8 bits, many are equal, and which class is the most probable cannot be said."""

    def forward(self, input: Tensor) -> Tensor:
        """Features ``(N, C)`` to logits ``(N, K)``."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def find_classifier(model: nn.Module, num_classes: int) -> nn.Linear | None:
    """The last linear layer of ``num_classes`` outputs, from a model's pooled features to its logits; None where there
    is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return next((layer for layer in reversed(layers) if layer.out_features == num_classes), None)


def classify_in_full_precision(model: nn.Module, num_classes: int) -> None:
    """Make a model's last linear layer, where it gives the logits of ``num_classes`` classes, a `Classifier`, whose
    parameters and names are the same."""
    classifier = find_classifier(model, num_classes)
    if type(classifier) is nn.Linear:
        classifier.__class__ = Classifier
