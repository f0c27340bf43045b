"""What a model costs, and its shapes stage by stage, counted without computing anything."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convnext.models.convnext import ConvNeXt


@dataclass(frozen=True)
class Row:
    """One layer, or group of layers, of a model: its name, the shape of its output without the batch, its parameters,
    and its multiply-adds for one image, in 1e9."""

    name: str
    output: tuple[int, ...]
    parameters: int
    gmacs: float


def count_parameters(module: nn.Module) -> int:
    """Parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_gmacs(model: nn.Module, image_size: int = 224, channels: int = 3) -> float:
    """Multiply-adds of convolutions and matrix products for one square image, in 1e9: what the papers call GFLOPs. On
    the meta device nothing is computed."""
    return float(_count(model, image_size, channels).get_total_flops()) / 2e9


def _count(model: nn.Module, image_size: int, channels: int) -> FlopCounterMode:
    device, training = next(model.parameters()).device, model.training
    counter: FlopCounterMode = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model.eval()(torch.empty(1, channels, image_size, image_size, device=device))
    model.train(training)
    return counter


def stage_rows(model: ConvNeXt, image_size: int = 224, channels: int = 3) -> list[Row]:
    """The stem, every downsampling layer and stage, and the head, in the order of the computation."""
    layers: dict[str, nn.Module] = {"norm": model.norm, "head": model.head}
    for index, (downsample, stage) in enumerate(zip(model.downsample_layers, model.stages, strict=True)):
        layers |= {f"downsample_layers.{index}": downsample, f"stages.{index}": stage}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        counter = _count(model, image_size, channels)
    finally:
        for handle in handles:
            handle.remove()
    flops = counter.get_flop_counts()
    prefix = type(model).__name__
    return [
        Row(name, shape, count_parameters(layers[name]), sum(flops.get(f"{prefix}.{name}", {}).values()) / 2e9)
        for name, shape in shapes.items()
    ]


def images_per_second(model: nn.Module, image_size: int = 224, batch_size: int = 8, channels: int = 3) -> float:
    """Median throughput of the forward pass, on the device where the model is, over at least two seconds."""
    from torch.utils.benchmark import Timer

    device = next(model.parameters()).device
    images = torch.randn(batch_size, channels, image_size, image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    model = model.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=torch.get_num_threads())
        return batch_size / timer.blocked_autorange(min_run_time=2).median
