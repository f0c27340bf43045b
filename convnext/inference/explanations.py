"""Where a model looked in an image for a class, by `captum`. Importing it is cheap: no torch."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import Picture
from convnext.errors import SettingsError, did_you_mean
from convnext.inference.backends import Backend, Images, check_logits, normalized
from convnext.inference.preparation import prepare, prepare_reduced
from convnext.weights.model_info import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnext.models.feature_maps import Stage

Method: TypeAlias = Literal["grad-cam", "occlusion", "integrated-gradients"]
METHODS: tuple[Method, ...] = get_args(Method)
_WINDOWS = 5  # that an image is as wide as; occlusion moves by half a window
_STEPS = 32  # of integrated gradients, from the mean colour to the image
_AT_ONCE = 16  # images in a batch
_LISTED = 20  # classes that an error names
_NEIGHBOURS = 16  # squares that an image is as wide as, over which integrated gradients, noise by itself, are summed


class StoppedError(Exception):
    """An explanation that was given up before it was done."""


@dataclass(frozen=True)
class Explanation:
    """Where a model looked for a class in an image.

    Attributes:
        heat: ``(H, W)`` of what the model saw, from 0 to 1 where most speaks for the class; 0 everywhere if nothing
            does.
        class_name: the class.
        probability: that the model gives it, between 0 and 1.
        image: the whole image, upright.
        box: left, top, right and bottom of what the model saw, in pixels of the image.
        method: how it was found, in words.
    """

    heat: NDArray[np.float32]
    class_name: str
    probability: float
    image: Image.Image
    box: tuple[float, float, float, float]
    method: str

    def picture(self) -> Image.Image:
        """The image, and the heat over it; what the model did not see is pale."""
        from convnext.plots import style

        return style.rendered(self._figure())

    def save(self, path: str | Path) -> None:
        """Write that picture as a PNG; UserError where its folder is not there."""
        from convnext.plots import style

        style.save_figure(self._figure(), Path(path))

    def overlay(self, longest: int) -> Image.Image:
        """The image itself under the heat, at most ``longest`` pixels wide and high."""
        from convnext.plots.explanations import heat_over

        return heat_over(self.image, self.heat, self.box, longest)

    def _figure(self) -> Any:
        from convnext.plots.explanations import explanation_figure

        return explanation_figure(
            self.image, self.heat, self.box, f"{self.class_name}: {100 * self.probability:.1f} %", self.method
        )


def explain(
    backend: Backend,
    picture: Picture,
    class_name: str | None = None,
    method: Method = "grad-cam",
    stage: int = -1,
    stop: threading.Event | None = None,
) -> Explanation:
    """Where a backend's model looked for a class in an image: see `convnext.inference.predictor.Predictor.explain`.

    Raises:
        StoppedError: another thread has set ``stop``, which is looked at before each pass of the model.
    """
    check(backend, class_name, method, stage)
    info, pixels = backend.info, prepare(picture, backend)
    logits = _pass(backend, pixels[None], stop)[0].astype(np.float64)
    check_logits(backend, logits[None])
    target = int(logits.argmax()) if class_name is None else info.classes.index(class_name)
    words: str = method
    if method == "occlusion":
        reduced = prepare_reduced(picture, backend) if backend.preprocessing else pixels  # it takes dozens of passes
        evidence = _occlusion(lambda images: _pass(backend, images, stop), backend, reduced, target)
    else:
        model: nn.Module = backend.model  # type: ignore[attr-defined]
        images = _tensor(pixels, info, model)
        if method == "grad-cam":
            chosen = _stage(model, images, stage)
            evidence, words = _grad_cam(model, chosen, images, target), f"{method}, {chosen.name}"
        else:
            evidence = _integrated_gradients(lambda x: _pass(model, x, stop), images, target)
    odds = np.exp(logits - logits.max())
    image = picture.decode()
    return Explanation(
        heat=_scaled(evidence),
        class_name=info.classes[target],
        probability=float(odds[target] / odds.sum()),
        image=image,
        box=(0.0, 0.0, float(image.width), float(image.height)) if backend.preprocessing else _seen(image.size, info),
        method=words,
    )


def check(backend: Backend, class_name: str | None, method: str, stage: int = -1) -> None:
    """Refuse, with a SettingsError, what `explain` cannot do for any image."""
    classes = backend.info.classes
    if method not in METHODS:
        raise SettingsError(f"no method of explanation is called {method!r}: {did_you_mean(method, METHODS)}")
    if method != "grad-cam" and stage != -1:
        raise SettingsError(f"stage: {method} looks at the whole model; choose grad-cam, or leave the stage out")
    if find_spec("captum") is None:
        raise SettingsError("explanations need captum, which is not installed: pip install 'convnext[explain]'")
    if class_name is not None and class_name not in classes:
        many = f"it has {len(classes):,} classes" if len(classes) > _LISTED else ""
        raise SettingsError(f"the model has no class {class_name!r}: {did_you_mean(class_name, classes, many)}")
    if method != "occlusion" and not hasattr(backend, "model"):
        raise SettingsError(
            f"{method} needs gradients, which {backend.name} does not give: explain the run itself, or choose occlusion"
        )


def available(backend: Backend) -> tuple[list[Method], int]:
    """The methods that work for a backend, and how many stages Grad-CAM can look at, 0 where it does not work."""

    def works(method: Method) -> bool:
        try:
            check(backend, None, method)
        except SettingsError:
            return False
        return True

    methods, count = [method for method in METHODS if works(method)], 0
    if "grad-cam" in methods:
        from convnext.models.feature_maps import stages

        info, model = backend.info, backend.model  # type: ignore[attr-defined]
        black = np.zeros((info.image_size, info.image_size, info.channels), np.uint8)
        count = len(stages(model, _tensor(black, info, model)))
        if not count:
            methods.remove("grad-cam")
    return methods, count


def _pass(model: Callable[[Any], Any], images: Any, stop: threading.Event | None) -> Any:
    """A pass of the model; StoppedError in place of it where ``stop`` is set."""
    if stop is not None and stop.is_set():
        raise StoppedError
    return model(images)


def _centred(logits: "Tensor") -> "Tensor":
    """Logits ``(N, K)`` less their mean: a softmax leaves open which number is added to all of them, and with few
    classes what speaks for one may stand in the others' logits alone."""
    return logits - logits.mean(1, keepdim=True)


def _tensor(pixels: Images, info: ModelInfo, model: "nn.Module") -> "Tensor":
    """The normalized image ``(1, C, H, W)``, on the model's device."""
    import torch

    return torch.from_numpy(normalized(pixels[None], info)).to(next(model.parameters()).device)


def _stage(model: "nn.Module", images: "Tensor", number: int) -> "Stage":
    from convnext.models.feature_maps import stages

    known = stages(model, images)
    if not known:
        raise SettingsError("grad-cam needs feature maps, and the model has none: choose occlusion")
    if not -len(known) <= number < len(known):
        raise SettingsError(
            f"stage: the model has 0 to {len(known) - 1} here, from the finest feature maps to the coarsest, or -1 to "
            f"-{len(known)} from the end, got {number}"
        )
    return known[number]


def _grad_cam(model: "nn.Module", stage: "Stage", images: "Tensor", target: int) -> "Tensor":
    """What the stage's maps, each weighted by its mean gradient, add to the class's logit, at the image's size."""
    from captum.attr import LayerGradCam
    from torch import nn
    from torch.nn.functional import interpolate

    probe = nn.Identity()  # captum takes maps whose channels come first

    def pass_through(_module: "nn.Module", _inputs: Any, output: "Tensor") -> "Tensor":
        if stage.channels_last:
            return probe(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
        return probe(output)  # type: ignore[no-any-return]

    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    handles = [norm.register_forward_hook(_with_fixed_scale) for norm in norms]
    handles.append(stage.module.register_forward_hook(pass_through))
    try:
        evidence = LayerGradCam(lambda x: _centred(model(x)), probe).attribute(images.requires_grad_(), target)
    finally:
        for handle in handles:
            handle.remove()
    return interpolate(evidence.detach(), images.shape[2:], mode="bilinear")[0, 0]


def _with_fixed_scale(norm: Any, inputs: "tuple[Tensor, ...]", output: "Tensor") -> "Tensor":
    """The same output of a norm over pooled features, where no gradient goes through what they are divided by.

    Otherwise each gradient is at right angles to the pooled features, whose length changes nothing, and what the
    positions of a ConvNeXt's last map add to a logit comes to zero, with either sign where the object is. With the
    scale fixed it comes to the logit less its bias (Ali et al. 2022, arXiv:2202.07304).
    """
    pooled = inputs[0].flatten(1)
    if pooled.shape[1] != norm.normalized_shape[0] or norm.bias is None:  # of each position by itself
        return output
    centred = pooled - pooled.mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + norm.eps).rsqrt().detach()
    result: Tensor = (centred * scale * norm.weight + norm.bias).view_as(output)
    return result


def _integrated_gradients(model: Callable[["Tensor"], "Tensor"], images: "Tensor", target: int) -> "Tensor":
    """What each pixel with its neighbours adds to the class's logit, on the way from an image of the mean colour."""
    from captum.attr import IntegratedGradients
    from torch.nn.functional import avg_pool2d

    evidence: Tensor = IntegratedGradients(lambda x: _centred(model(x))).attribute(
        images, target=target, n_steps=_STEPS, internal_batch_size=_AT_ONCE
    )
    width = images.shape[-1] // _NEIGHBOURS // 2 * 2 + 1
    return avg_pool2d(evidence.detach()[0].sum(0, keepdim=True), width, 1, width // 2)[0]


def _occlusion(
    compute: Callable[[Images], NDArray[np.float32]], backend: Backend, pixels: Images, target: int
) -> "Tensor":
    """By how much the class's logit falls, on average, when a square of the mean colour lies over a pixel; ``compute``
    is the backend."""
    import torch
    from captum.attr import Occlusion

    def logits(images: "Tensor") -> "Tensor":
        pixels = images.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
        return _centred(torch.from_numpy(compute(pixels)))

    height, width, channels = pixels.shape
    window = -(-min(height, width) // _WINDOWS)
    step = -(-window // 2)
    mean = torch.tensor([round(255 * value) for value in backend.info.mean], dtype=torch.float32)
    evidence: Tensor = Occlusion(logits).attribute(
        torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None],
        sliding_window_shapes=(channels, window, window),
        strides=(channels, step, step),
        baselines=mean.view(1, -1, 1, 1).expand(1, -1, height, width),
        target=target,
        # A file that resizes by itself takes one image at a time, whatever their number.
        perturbations_per_eval=1 if backend.preprocessing else _AT_ONCE,
    )
    return evidence[0, 0]


def _scaled(evidence: "Tensor") -> NDArray[np.float32]:
    """What speaks for the class, from 0 to 1."""
    values: NDArray[np.float32] = np.maximum(evidence.float().cpu().numpy(), 0)
    most = values.max()
    return np.divide(values, most, out=values) if most > 0 else values


def _seen(size: tuple[int, int], info: ModelInfo) -> tuple[float, float, float, float]:
    """The square in the middle that `convnext.data.images.Picture.center` keeps."""
    width, height = size
    edge = min(size) * info.image_size / round(info.image_size / info.center_crop)
    return (width - edge) / 2, (height - edge) / 2, (width + edge) / 2, (height + edge) / 2
