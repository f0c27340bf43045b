"""Class names and probabilities for images, from a run's folder alone."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convnext.data.images import Picture, UnreadableImageError
from convnext.data.transforms import EvalTransform, Normalize
from convnext.errors import SettingsError
from convnext.runs import checkpoint as checkpoints
from convnext.weights.model_info import ModelInfo

ImageLike: TypeAlias = str | Path | bytes | BinaryIO | Image.Image | NDArray[np.uint8] | Tensor


class Prediction(NamedTuple):
    """A class and its probability, between 0 and 1."""

    class_name: str
    probability: float


class Predictor:
    """A trained model with its class names and preprocessing.

    Args:
        model: from normalised images ``(N, C, H, W)`` to logits ``(N, K)``.
        info: classes, statistics and image size.
        device: where to compute, as in `convnext.config.RunSettings`.
    """

    def __init__(self, model: nn.Module, info: ModelInfo, device: str = "auto") -> None:
        from convnext.devices import pick_device

        self.info = info
        self.device = torch.device(pick_device(device))
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._transform = EvalTransform(info.image_size, info.center_crop)
        self._normalize = Normalize(info.mean, info.std).to(self.device)

    @classmethod
    def load(
        cls, run: str | Path, checkpoint: str | None = None, device: str = "auto", model: nn.Module | None = None
    ) -> "Predictor":
        """The predictor of a run's ``checkpoint``, ``"last"`` or ``"best"``, or of released weights.

        Args:
            run: the run's folder; or a checkpoint's, or its ``model.safetensors``, copied elsewhere or not; or a model
                and its weights such as ``"convnext_tiny:in1k"``, downloaded once.
            checkpoint: the run's: ``"last"`` or ``"best"``; None for the last, or the best of a run with `patience`.
            device: where to compute.
            model: where the weights go, if the run trained a module of one's own.

        Raises:
            CheckpointError: no such run or checkpoint, or a damaged one.
            UserError: no such released weights, or they cannot be fetched.
        """
        name, _, tag = str(run).partition(":")
        if tag and not Path(run).exists():
            return cls(*_released(name, tag), device)
        return cls(*checkpoints.load_model(checkpoints.find(Path(run), checkpoint), model), device)

    def __call__(self, image: ImageLike, top_k: int = 5) -> list[Prediction]:
        """The ``top_k`` most probable classes of one image, best first.

        Args:
            image: a path, an encoded file's bytes or a binary stream of them; or pixels, which are taken as they are: a
                Pillow image, a uint8 array ``(H, W, 3)`` or ``(H, W)``, or a uint8 tensor ``(3, H, W)`` or ``(H, W)``,
                in RGB order (OpenCV's are BGR: ``image[..., ::-1]``).
            top_k: how many; all classes where there are fewer.

        Raises:
            SettingsError: no image, such as an array of floats, of which nobody knows the scale.
            UnreadableImageError: the image cannot be decoded.
        """
        if top_k < 1:
            raise SettingsError(f"top_k: must be at least 1, got {top_k}")
        return self._predict([self._prepare(image)], top_k)[0]

    def batches(
        self, images: Iterable[ImageLike], top_k: int = 5, batch_size: int = 32
    ) -> Iterator[list[Prediction] | Exception]:
        """Predictions for many images, as one alone is given, in order; an unreadable one yields its
        `UnreadableImageError`."""
        stream = iter(images)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            while chunk := list(islice(stream, batch_size)):
                prepared = list(threads.map(self._try_prepare, chunk))
                readable = [pixels for pixels in prepared if isinstance(pixels, Tensor)]
                predictions = iter(self._predict(readable, top_k) if readable else [])
                for pixels in prepared:
                    yield next(predictions) if isinstance(pixels, Tensor) else pixels

    def _try_prepare(self, image: ImageLike) -> Tensor | Exception:
        try:
            return self._prepare(image)
        except UnreadableImageError as error:
            return error

    def _prepare(self, image: ImageLike) -> Tensor:
        channels, most, white = self.info.channels, self.info.max_pixels, self.info.max_value
        if isinstance(image, np.ndarray | Tensor):
            image = _from_pixels(image)
        if isinstance(image, bytes | Image.Image):
            return self._transform(Picture(image, channels, max_pixels=most, max_value=white))
        if not isinstance(image, str | Path) and not hasattr(image, "read"):
            raise SettingsError(
                f"an image is a path, bytes, a stream, a Pillow image, an array or a tensor, not of type "
                f"{type(image).__name__}; many go into Predictor.batches"
            )
        return self._transform(Picture.open(image, channels, max_pixels=most, max_value=white))

    @torch.inference_mode()
    def _predict(self, pixels: Sequence[Tensor], top_k: int) -> list[list[Prediction]]:
        batch = torch.stack(list(pixels)).to(self.device, memory_format=torch.channels_last)
        best = self.model(self._normalize(batch)).float().softmax(1).topk(min(top_k, len(self.info.classes)))
        return [
            [Prediction(self.info.classes[index], probability) for index, probability in zip(*row, strict=True)]
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _from_pixels(pixels: NDArray[Any] | Tensor) -> Image.Image:
    """The image of a uint8 array ``(H, W)`` or ``(H, W, C)``, or of a uint8 tensor ``(H, W)`` or ``(C, H, W)``, with 1,
    3 or 4 channels."""
    kind, order, cast = "an array", "(H, W, C)", "astype(np.uint8)"
    array: NDArray[Any] = pixels.numpy(force=True) if isinstance(pixels, Tensor) else pixels
    if isinstance(pixels, Tensor):
        kind, order, cast = "a tensor", "(C, H, W)", "byte()"
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    if array.dtype != np.uint8:
        raise SettingsError(
            f"{kind} of {array.dtype}: pixels are uint8, from 0 to 255; of an image between 0 and 1 they are "
            f"(image * 255).round().{cast}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise SettingsError(
            f"{kind} of shape {tuple(pixels.shape)} is no image: that has {order} with 1, 3 or 4 channels, or (H, W); "
            f"many images go into Predictor.batches"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _released(name: str, tag: str) -> tuple[nn.Module, ModelInfo]:
    """A model with the authors' weights, and how they used it."""
    from convnext.config import ModelSettings
    from convnext.models import registry
    from convnext.weights.catalogue import find
    from convnext.weights.loading import start_from
    from convnext.weights.released import imagenet_classes

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
