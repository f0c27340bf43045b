"""Parameter groups, the optimizer, the learning rate as a function of the step, and the average of the weights."""

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convnext.config import OptimizerSettings, RunSettings

_Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels with weight decay; vectors (norms, biases, layer scale) without, as the authors do."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Fused AdamW; its learning rate is set at every step from `learning_rate`."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def learning_rate(step: int, settings: RunSettings, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine to ``min_lr`` (Loshchilov & Hutter 2017), at optimizer step ``step`` from 0."""
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return settings.peak_lr * (step + 1) / warmup_steps
    # min_lr is scaled with the batch size as lr is, and never above the peak.
    minimum = min(settings.optimizer.min_lr / settings.optimizer.lr, 1.0) * settings.peak_lr
    progress = (step - warmup_steps) / max(1, settings.epochs * steps_per_epoch - warmup_steps)
    return minimum + (settings.peak_lr - minimum) * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(updates: int, decay: float) -> float:
    """Decay after ``updates`` updates: low at first, so that the average forgets the random initial weights."""
    return min(decay, (1 + updates) / (10 + updates))


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the model's weights and buffers, warmed up by `ema_decay`."""

    def average(averages: _Tensors, values: _Tensors, _: Tensor | int) -> None:
        # The counter stays on the CPU: reading it never waits for the device.
        weight = 1 - ema_decay(int(averaged.n_averaged), decay)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, weight)
        else:
            torch._foreach_copy_(averages, values)

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    averaged.requires_grad_(False)
    averaged.n_averaged = averaged.n_averaged.cpu()
    return averaged
