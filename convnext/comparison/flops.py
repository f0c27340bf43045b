"""What a training costs in arithmetic, whatever the machine."""

from convnext.config import ModelSettings, RunSettings
from convnext.data.resizing import sizes_by_epoch
from convnext.models.registry import cost

_OF_A_MULTIPLY_ADD, _PASSES = 2, 3  # operations; the backward pass computes the gradients of inputs and of weights


def flops_by_epoch(
    settings: RunSettings, num_classes: int, images: int, proxy: ModelSettings | None = None
) -> list[float]:
    """Floating-point operations of each epoch's training: of the convolutions and matrix products, a multiply-add being
    two, and of the backward pass, which is taken for twice the forward pass (with frozen layers it is less). Those of a
    proxy's own training are not among them.

    Args:
        settings: the run's, resolved.
        num_classes: of the data.
        images: that an epoch trains on.
        proxy: resolved settings of the network that chooses them from more, where there is one.
    """
    sizes = sizes_by_epoch(settings.data, settings.epochs)
    multiply_adds = {size: cost(settings.model, size, num_classes)[1] for size in set(sizes)}
    trained = {size: _PASSES * multiply_adds[size] * images for size in multiply_adds}
    judged = images * settings.drawn_batch_size / settings.batch_size
    judging = {size: judged * cost(proxy, size, num_classes)[1] if proxy else 0.0 for size in multiply_adds}
    return [float(_OF_A_MULTIPLY_ADD * (trained[size] + judging[size])) for size in sizes]
