"""PyTorch, as a model was trained."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext import kernels
from convnext.data.batch_transforms import Normalize
from convnext.devices import pick_device
from convnext.errors import SettingsError
from convnext.inference.backends import Images, check_images
from convnext.models.classifier import find_classifier
from convnext.weights.model_info import ModelInfo


class EagerBackend:
    """A module as a `convnext.inference.backends.Backend`.

    Args:
        model: from normalised images ``(N, C, H, W)`` to logits ``(N, K)``.
        info: its classes and how it wants its images.
        device: where to compute, as in `convnext.config.RunSettings`.
        precision: ``"fp32"``, or ``"bf16"`` by autocast.
    """

    name = "eager"
    preprocessing = False

    def __init__(self, model: nn.Module, info: ModelInfo, device: str = "auto", precision: str = "fp32") -> None:
        self.info = info
        self.device = torch.device(pick_device(device))
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self._autocast = precision == "bf16"
        self._normalize = Normalize(info.mean, info.std).to(self.device)

    def use_kernels(self, compile: bool = False) -> None:
        """Compute on the CPU by `convnext.kernels` where they apply, if they have been compiled; or ``compile`` them,
        which takes seconds once on a machine. The model is changed, as `convnext.kernels.hold` does."""
        if self.device.type == "cpu" and (compile or kernels.is_kept()):
            kernels.install(self.model)
            kernels.hold(self.model)

    @torch.inference_mode()
    def __call__(self, images: Images) -> NDArray[np.float32]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``."""
        return self._logits(images)

    @torch.inference_mode()
    def with_features(self, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The logits ``(N, K)`` of images ``(N, H, W, C)``, and what the classifier made them of: the model's pooled
        features ``(N, D)``.

        Raises:
            SettingsError: the model's logits do not come from a linear layer.
        """
        classifier = find_classifier(self.model, len(self.info.classes))
        seen: list[Tensor] = []
        if classifier is not None:
            hook = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            try:
                logits = self._logits(images)
            finally:
                hook.remove()
        if not seen or seen[-1].shape[:-1] != (len(images),):
            raise SettingsError("the model has no features before a linear classifier, so nothing can be embedded")
        return logits, seen[-1].float().cpu().numpy()

    def _logits(self, images: Images) -> NDArray[np.float32]:
        check_images(images, self)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)  # channels last, as it lies in memory
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.model(self._normalize(pixels))
        values: NDArray[np.float32] = logits.float().cpu().numpy()
        return values
