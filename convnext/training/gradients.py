"""The gradient of one step: in micro-batches that fit into memory, over all processes."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convnext.config import RunSettings
from convnext.evaluation.metrics import ranked
from convnext.training.loss import cross_entropy


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    settings: RunSettings,
    batch: tuple[Tensor, Tensor, Tensor],
    count: int,
    everyones: int,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Leave the mean gradient over the images of all processes in the parameters, computed in micro-batches.

    Args:
        accelerator: the processes.
        model: as the accelerator prepared it.
        settings: of the run.
        batch: images ``(n, C, H, W)`` of this process, their targets ``(n,)`` or ``(n, K)``, and labels ``(n,)``.
        count: ``n``, or 0 where the images are there only for form.
        everyones: images of all processes.
        class_weights: see `convnext.training.loss.cross_entropy`.

    Returns:
        The sum of this process's losses, and the number of its right answers.
    """
    assert settings.gradient_accumulation != "auto"
    micro_batches = list(zip(*(tensor.chunk(settings.gradient_accumulation) for tensor in batch), strict=True))
    sums = torch.zeros(2, device=accelerator.device)
    for number, (images, targets, labels) in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast():
                logits = model(images).float()
            loss = cross_entropy(logits, targets, settings.label_smoothing, class_weights)
            # Gradients are averaged over the processes, hence their number.
            weight = min(len(labels), count) * accelerator.num_processes / everyones
            accelerator.backward(loss * weight)
        if count:
            correct = (ranked(logits.detach())[:, 0] == labels).sum()
            sums += torch.stack([loss.detach() * len(labels), correct])
    return sums


def norms(accelerator: Accelerator, parameters: Sequence[nn.Parameter], clip_norm: float | None) -> Tensor:
    """The norms of the whole gradient and of each of these parameters', ``(1 + n,)``; then the gradient is clipped to
    ``clip_norm`` where that is given."""
    accelerator.unscale_gradients()
    each = torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
    whole = torch.linalg.vector_norm(each)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, whole)
    return torch.cat([whole[None], each]).float()
