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


def classify_in_full_precision(model: nn.Module, num_classes: int) -> None:
    """Make a model's last linear layer, where it gives the logits of ``num_classes`` classes, a `Classifier`, whose
    parameters and names are the same."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and module.out_features == num_classes]
    if layers:
        layers[-1].__class__ = Classifier
