"""A small trained network that chooses what a larger one is trained on: of each batch the images it finds hardest.

Easy images teach little more. To judge an image takes a small network's forward pass, a fraction of what the larger
one's step on it would take (the proxy of airbench96, Jordan 2024, arXiv:2404.00498; as selective backpropagation,
Jiang et al. 2019, arXiv:1910.00762).
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import distributed, kernels
from convnext.config import ModelSettings, RunSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.evaluation.evaluator import prepare_model
from convnext.evaluation.images import check_classes
from convnext.models import registry
from convnext.runs import checkpoint
from convnext.storage.files import DIGESTS, writing
from convnext.weights.model_info import ModelInfo, read_json

COPY = "proxy"
"""Folder of a run's own copy of its proxy."""
_FILES = ("model.safetensors", "model.json")


class Proxy:
    """Chooses images.

    Args:
        model: from normalized images ``(N, C, H, W)`` to logits ``(N, K)``, on its device; it stays as it is.
        most: images of a batch that are trained on.
        autocast: context of the forward pass.
    """

    def __init__(self, model: nn.Module, most: int, autocast: Callable[[], AbstractContextManager[object]]) -> None:
        self.model, self.most, self._autocast = model.eval().requires_grad_(False), most, autocast
        kernels.hold(self.model)

    @torch.no_grad()
    def choose(self, images: Tensor, labels: Tensor, *others: Tensor) -> list[Tensor]:
        """The images ``(N, C, H, W)`` on which the network's loss is largest, in the order that they have, their labels
        ``(N,)``, and of ``others`` what is theirs."""
        with self._autocast():
            logits = self.model(images).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        chosen = losses.topk(min(self.most, len(losses))).indices.sort().values
        rows = images.permute(0, 2, 3, 1)  # as they lie where they are channels-last, which they stay
        return [rows[chosen].permute(0, 3, 1, 2), *(x[chosen] for x in (labels, *others))]


def own_copy(run: Path, settings: RunSettings) -> Path | None:
    """The folder of the run's own copy of its proxy, which is made where it is not there yet, so that the run goes on
    when the other is gone; None for a run without one. CheckpointError where the proxy cannot be read."""
    if settings.proxy_from is None:
        return None
    folder = run / COPY
    if not all((folder / name).is_file() for name in _FILES):
        source = checkpoint.find(settings.proxy_from)
        folder.mkdir(exist_ok=True)
        for name in (DIGESTS, *_FILES):
            if (source / name).is_file():
                with writing(folder / name) as unfinished:
                    shutil.copyfile(source / name, unfinished)
    return folder


def proxy_model(folder: Path) -> ModelSettings:
    """Resolved settings of the proxy whose checkpoint is in a run's folder, or a checkpoint's; CheckpointError where it
    cannot be read."""
    return read_json(checkpoint.find(folder) / "model.json", ModelInfo).model


def load_proxy(folder: Path, settings: RunSettings, info: ModelInfo, accelerator: Accelerator) -> Proxy:
    """The proxy whose checkpoint is in a run's folder, or a checkpoint's, for a run of ``info``.

    Raises:
        SettingsError: it sees images otherwise normalized than the run does, or is for larger ones.
        CheckpointError: it is missing, damaged, or of other classes.
    """
    model, own = checkpoint.load_model(checkpoint.find(folder))
    source = settings.proxy_from or folder  # which is a copy of it
    check_classes(own, info.classes, source)
    if own.classes != info.classes:
        raise CheckpointError(f"proxy_from: {source} has the classes in another order: train it on the same images")
    if (own.mean, own.std) != (info.mean, info.std):
        raise SettingsError(
            f"proxy_from: {source} was trained with mean {own.mean} and standard deviation {own.std} of the channels, "
            f"and this run has {info.mean} and {info.std}: train both on the same images, or give both data.mean and "
            f"data.std"
        )
    for size in settings.data.sizes:
        registry.check_image_size(own.model, size)
    model = model.to(accelerator.device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    most = distributed.own_count(accelerator, settings.batch_size)
    return Proxy(prepare_model(model, own), most, accelerator.autocast)
