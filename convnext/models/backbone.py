"""ConvNeXt under a detector or a segmenter: feature maps of several strides (section 3.5)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from convnext.errors import SettingsError
from convnext.models.convnext import ConvNeXt, LayerNorm2d


class Backbone(nn.Module):
    """Feature maps of chosen stages, each behind a LayerNorm of its own, as in the authors' detectors.

    Args:
        model: its stages are used, its classifier is not.
        out_indices: stages to return, from 0; of a four-stage model they have strides 4, 8, 16 and 32.

    Attributes:
        out_channels: channels of each map.
        strides: pixels to one position of each map.

    Raises:
        SettingsError: a stage that the model does not have.
    """

    def __init__(self, model: ConvNeXt, out_indices: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        count = len(model.stages)
        if not out_indices or not all(0 <= index < count for index in out_indices):
            raise SettingsError(f"out_indices {tuple(out_indices)}: the model has stages 0 to {count - 1}")
        model.reset_classifier(0)
        model.norm = nn.Identity()  # type: ignore[assignment]
        self.model = model
        self.out_indices = tuple(out_indices)
        self.out_channels = [model.dims[index] for index in out_indices]
        self.strides = [model.stride // 2 ** (count - 1 - index) for index in out_indices]
        self.norms = nn.ModuleList(LayerNorm2d(channels, eps=1e-6) for channels in self.out_channels)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Images ``(N, C, H, W)`` to maps ``(N, out_channels[i], H / strides[i], W / strides[i])`` by stage number."""
        maps = self.model.forward_stages(x)
        pairs = zip(self.out_indices, self.norms, strict=True)
        return OrderedDict((str(index), norm(maps[index])) for index, norm in pairs)


class FPNBackbone(nn.Module):
    """A `Backbone`, of the same arguments, with torchvision's feature pyramid, of ``out_channels`` at every level: what
    its detectors take as ``backbone``."""

    def __init__(self, model: ConvNeXt, out_indices: Sequence[int] = (0, 1, 2, 3), out_channels: int = 256) -> None:
        super().__init__()
        self.body = Backbone(model, out_indices)
        self.fpn = FeaturePyramidNetwork(self.body.out_channels, out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images ``(N, C, H, W)`` to the levels ``"0"``, ``"1"``, … and the coarsest, ``"pool"``."""
        levels: dict[str, Tensor] = self.fpn(self.body(x))
        return levels
