"""Class names and probabilities for images, from a run's folder or an exported file alone.

Importing it is cheap, and an exported file for ONNX Runtime or OpenVINO predicts without PyTorch.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import Picture, UnreadableImageError
from convnext.errors import SettingsError
from convnext.inference.backends import Backend, Images, check_logits, logits_of, mirrored, open_file
from convnext.inference.explanations import Explanation, Method, explain
from convnext.inference.files import expand, is_url
from convnext.inference.preparation import prepare
from convnext.runs import checkpoint as checkpoints
from convnext.storage.hub import fetch_model
from convnext.weights.files import exported_file, refuse_checkpoint
from convnext.weights.model_info import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import TypeIs

ImageLike: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | NDArray[np.uint8] | Tensor"
Sources: TypeAlias = Iterable[ImageLike] | str | Path
Prepared: TypeAlias = tuple[Images, Picture, Image.Image | None]  # what the backend takes; a preview

_MANY = 100  # images, for which compiling takes less time than it saves

URL_BYTES, URL_SECONDS = 64 * 2**20, 30.0
"""Limits of an image that a URL names."""


class Prediction(NamedTuple):
    """A class and its probability, between 0 and 1."""

    class_name: str
    probability: float


class Result(NamedTuple):
    """What `Predictor.results` gives of an image: the most probable classes, best first; and where they were asked for,
    the pooled features ``(D,)``, the image itself, upright and small, and what it was read as."""

    classes: list[Prediction]
    features: NDArray[np.float32] | None = None
    preview: Image.Image | None = None
    picture: Picture | None = None


class Predictor:
    """A trained model with its class names and preprocessing.

    Args:
        model: from normalised images ``(N, C, H, W)`` to logits ``(N, K)``, or a backend.
        info: classes, statistics and image size; None takes the backend's.
        device: where to compute, as in `convnext.config.RunSettings`; a backend has its own.
    """

    def __init__(self, model: "nn.Module | Backend", info: ModelInfo | None = None, device: str = "auto") -> None:
        if _is_module(model):
            from convnext.inference.backends.eager import EagerBackend

            if info is None:
                raise SettingsError("Predictor: a module needs the info that says its classes and image size")
            self.backend: Backend = EagerBackend(model, info, device)
            self.backend.use_kernels()
        else:
            self.backend = model
        self.info = info or self.backend.info

    def warm_up(self, images: int) -> None:
        """Do now what takes seconds once, where it will be repaid over so many images: compile the CPU's kernels, if
        PyTorch computes there and they have not been."""
        if images >= _MANY and (use_kernels := getattr(self.backend, "use_kernels", None)):
            use_kernels(compile=True)

    @property
    def model(self) -> "nn.Module":
        """The module, where PyTorch computes from a run; AttributeError where it is an exported file."""
        from convnext.inference.backends.eager import EagerBackend

        if not isinstance(self.backend, EagerBackend):
            raise AttributeError(f"{self.backend.name} has no module")
        return self.backend.model

    @classmethod
    def load(
        cls,
        run: str | Path,
        checkpoint: str | None = None,
        device: str = "auto",
        model: "nn.Module | None" = None,
        trust: bool = False,
        backend: str | None = None,
    ) -> "Predictor":
        """The predictor of a run's ``checkpoint``, ``"last"`` or ``"best"``, of an exported file, or of released
        weights.

        Args:
            run: the run's folder; or a checkpoint's, or its ``model.safetensors``, copied elsewhere or not; or a
                file or folder of `convnext export`; or, downloaded once, such a folder on the Hugging Face Hub,
                ``"hf:owner/name"``, or a model and its released weights, ``"convnext_tiny:in1k"``.
            checkpoint: the run's: ``"last"`` or ``"best"``; None for the last, or the best of a run with `patience`.
            device: where to compute; an exported file for ONNX Runtime or OpenVINO computes on the CPU.
            model: where the weights go, if the run trained a module of one's own.
            trust: whether an exported file may run code, which opening a ``.pt2`` can do.
            backend: what computes a run or released weights, on the CPU in fp32: ``"eager"`` (PyTorch, as does None),
                ``"onnxruntime"`` or ``"openvino"``, for which they are exported once into the cache folder; or
                ``"auto"``, the fastest that is installed, measured once. An exported file has its own.

        Raises:
            CheckpointError: no such run or checkpoint, or a damaged one.
            SettingsError: a checkpoint or module for what is no run, or a device that the backend does not compute on.
            UserError: no such released weights, or they cannot be fetched.
        """
        name, _, tag = str(run).partition(":")
        if name == "hf":
            run, tag = fetch_model(tag), ""
        is_released = bool(tag) and not Path(run).exists()
        if not is_released and (file := exported_file(Path(run))):
            refuse_checkpoint(checkpoint, file, "an exported file")
            if model is not None:
                raise SettingsError(f"a module of one's own is of a run, and {file} is an exported file: leave it out")
            return cls(open_file(file, device, trust, backend=backend))
        if is_released:
            refuse_checkpoint(checkpoint, run, "released weights")
        origin = str(run) if is_released else checkpoints.find(Path(run), checkpoint)
        if backend is not None:
            from convnext.inference.runtimes import open_runtime

            if model is not None and backend != "eager":
                raise SettingsError(f"backend {backend}: a module of one's own computes in PyTorch: leave it out")
            if opened := open_runtime(origin, backend, device):
                return cls(opened)
        if isinstance(origin, Path):
            return cls(*checkpoints.load_model(origin, model), device)
        from convnext.inference.released import released

        return cls(*released(name, tag), device)

    def __call__(self, image: ImageLike, top_k: int = 5, flip: bool = False) -> list[Prediction]:
        """The ``top_k`` most probable classes of one image, best first.

        Args:
            image: a path, a URL (http or https; of at most 64 MiB), an encoded file's bytes or a binary stream of them;
                or pixels, which are taken as they are: a Pillow image, a uint8 array ``(H, W, 3)`` or ``(H, W)``, or a
                uint8 tensor ``(3, H, W)`` or ``(H, W)``, in RGB order (OpenCV's are BGR: ``image[..., ::-1]``).
            top_k: how many; all classes where there are fewer.
            flip: average the image's logits with those of its mirror image.

        Raises:
            SettingsError: no image, such as an array of floats, of which nobody knows the scale.
            UnreadableImageError: the image cannot be fetched or decoded.
            CheckpointError: the model's logits are no numbers.
        """
        (result,) = self._results([self._prepare(image, 0)], top_k, flip, features=False)
        return result.classes

    def batches(
        self, images: Sources, top_k: int = 5, batch_size: int = 32, flip: bool = False
    ) -> Iterator[list[Prediction] | Exception]:
        """Predictions for many images, each as one alone is given, in order; an unreadable one yields its
        `UnreadableImageError`.

        A folder or a glob pattern alone stands for its images, sorted: `convnext.inference.files.expand` names them. A
        batch is in memory at a time, so ``images`` may be a stream without end.
        """
        for result in self.results(images, top_k, batch_size, flip):
            yield result if isinstance(result, Exception) else result.classes

    def embed(self, images: Sources, batch_size: int = 32, flip: bool = False) -> NDArray[np.float32]:
        """The pooled features ``(N, D)`` of images as `batches` takes them: what the model's classifier sees; with
        ``flip`` the mean of those of each image and of its mirror image.

        Raises:
            SettingsError: an exported file, which has no features, or a model without a linear classifier.
            UnreadableImageError: an image that cannot be read.
        """
        rows: list[NDArray[np.float32]] = []
        for result in self.results(images, 1, batch_size, flip, features=True):
            if isinstance(result, Exception):
                raise result
            assert result.features is not None
            rows.append(result.features)
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def results(
        self,
        images: Sources,
        top_k: int = 5,
        batch_size: int = 32,
        flip: bool = False,
        features: bool = False,
        preview: int = 0,
        pictures: bool = False,
    ) -> Iterator[Result | UnreadableImageError]:
        """All that one pass over many images gives, in order; see `batches` and `embed`.

        Args:
            images: as of `batches`.
            top_k: classes of each.
            batch_size: images at a time.
            flip: average logits and features with those of the mirror image.
            features: whether to give the pooled features.
            preview: the longer side in pixels to which to shrink the image that is given, too; 0 for none.
            pictures: whether to give what each image was read as, so that it need not be read again; a batch of whole
                images is in memory then.

        Raises:
            SettingsError: something that is no image, or a model without features.
            DataError: a folder or pattern without images.
        """
        if isinstance(images, str | Path):
            images = expand([str(images)])
        if self.backend.preprocessing:  # takes whole images, one by one
            batch_size = min(batch_size, os.cpu_count() or 1)
        stream = iter(images)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            while chunk := list(islice(stream, batch_size)):
                prepared = list(threads.map(lambda image: self._try_prepare(image, preview), chunk))
                readable = [item for item in prepared if not isinstance(item, Exception)]
                results = self._results(readable, top_k, flip, features)
                for item in prepared:
                    if isinstance(item, Exception):
                        yield item
                    else:
                        yield next(results)._replace(picture=item[1] if pictures else None)

    def _try_prepare(self, image: ImageLike, preview: int) -> Prepared | UnreadableImageError:
        try:
            return self._prepare(image, preview)
        except UnreadableImageError as error:
            return error

    def explain(
        self, image: ImageLike, class_name: str | None = None, method: Method = "grad-cam", stage: int = -1
    ) -> Explanation:
        """Where the model looked for a class in an image.

        Args:
            image: as for a prediction.
            class_name: None for the most probable one.
            method: ``"grad-cam"`` (Selvaraju et al. 2017) weighs a stage's feature maps by their gradients;
                ``"integrated-gradients"`` (Sundararajan et al. 2017) goes pixel by pixel; ``"occlusion"`` (Zeiler and
                Fergus 2014) covers the image square by square, which takes no gradient: exported files have it, too.
            stage: whose feature maps Grad-CAM takes, from the finest, 0, or counted from the end.

        Raises:
            SettingsError: no such class, method or stage; gradients of what has none; captum is not installed.
            UnreadableImageError: the image cannot be decoded.
        """
        return explain(self.backend, self.picture(image), class_name, method, stage)

    def picture(self, image: ImageLike, name: str = "image") -> Picture:
        """What an image, as of a call, is read as; ``name`` is what an error calls bytes and pixels.

        Raises:
            SettingsError: no image.
            UnreadableImageError: the image cannot be fetched, or its header cannot be read.
        """
        channels, most, white = self.info.channels, self.info.max_pixels, self.info.max_value
        if isinstance(image, np.ndarray) or _is_tensor(image):
            image = _from_pixels(image)
        if isinstance(image, bytes | Image.Image):
            return Picture(image, channels, name, max_pixels=most, max_value=white)
        if isinstance(image, str) and is_url(image):
            return Picture(_fetched(image), channels, image, max_pixels=most, max_value=white)
        if not isinstance(image, str | Path) and not hasattr(image, "read"):
            raise SettingsError(
                f"an image is a path, bytes, a stream, a Pillow image, an array or a tensor, not of type "
                f"{type(image).__name__}; many go into Predictor.batches"
            )
        return Picture.open(image, channels, max_pixels=most, max_value=white)

    def predict(self, prepared: Sequence[Images], top_k: int = 5, flip: bool = False) -> list[list[Prediction]]:
        """The ``top_k`` most probable classes of each of some images, best first, in one batch.

        Args:
            prepared: at least one; each a `picture` through `convnext.inference.preparation.prepare`, which may run in
                many threads, as the model may not.
            top_k: as of a call.
            flip: as of a call.
        """
        return self._ranked(logits_of(self.backend, prepared, flip), top_k)

    def _prepare(self, image: ImageLike, preview: int) -> Prepared:
        picture = self.picture(image)
        pixels = prepare(picture, self.backend)
        if not preview:
            return pixels, picture, None
        small = picture.decode()
        small.thumbnail((preview, preview))
        return pixels, picture, small

    def _results(self, prepared: Sequence[Prepared], top_k: int, flip: bool, features: bool) -> Iterator[Result]:
        if not prepared:
            return
        images = [pixels for pixels, _, _ in prepared]
        vectors: Iterable[NDArray[np.float32] | None] = repeat(None, len(images))
        if features:
            logits, vectors = self._with_features(images, flip)
        else:
            logits = logits_of(self.backend, images, flip)
        for classes, vector, (_, _, preview) in zip(self._ranked(logits, top_k), vectors, prepared, strict=True):
            yield Result(classes, vector, preview)

    def _ranked(self, logits: NDArray[np.float32], top_k: int) -> list[list[Prediction]]:
        if top_k < 1:
            raise SettingsError(f"top_k: must be at least 1, got {top_k}")
        check_logits(self.backend, logits)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = odds / odds.sum(1, keepdims=True)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]  # of equal ones the first, as a report counts
        return [
            [Prediction(self.info.classes[index], float(row[index])) for index in indices]
            for row, indices in zip(probabilities, best, strict=True)
        ]

    def _with_features(self, images: list[Images], flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with_features: Any = getattr(self.backend, "with_features", None)
        if with_features is None:
            raise SettingsError(
                f"an exported file gives logits alone ({self.backend.name}): embed with the run itself and no backend"
            )
        logits, features = with_features(np.stack(images))
        if not flip:
            return logits, features
        others = with_features(np.stack(mirrored(images)))
        return (logits + others[0]) / np.float32(2), (features + others[1]) / np.float32(2)


def _fetched(url: str) -> bytes:
    from convnext.storage.downloads import DownloadError  # what speaks HTTP takes its time to load
    from convnext.storage.web import fetch

    try:
        return fetch(url, URL_BYTES, URL_SECONDS)
    except DownloadError as error:
        raise UnreadableImageError(str(error)) from error


def _is_module(value: object) -> "TypeIs[nn.Module]":
    torch: Any = sys.modules.get("torch")  # nobody has a module or a tensor without it
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_tensor(value: object) -> "TypeIs[Tensor]":
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_pixels(pixels: "NDArray[Any] | Tensor") -> Image.Image:
    """The image of a uint8 array ``(H, W)`` or ``(H, W, C)``, or of a uint8 tensor ``(H, W)`` or ``(C, H, W)``, with 1,
    3 or 4 channels."""
    kind, order, cast = "an array", "(H, W, C)", "astype(np.uint8)"
    array: NDArray[Any]
    if isinstance(pixels, np.ndarray):
        array = pixels
    else:
        kind, order, cast = "a tensor", "(C, H, W)", "byte()"
        array = pixels.numpy(force=True)
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
