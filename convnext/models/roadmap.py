"""The roadmap from ResNet-50 to ConvNeXt-T: one network, sixteen settings, each changed from the last in one respect.

Source: "A ConvNet for the 2020s" (Liu et al., 2022, arXiv:2201.03545), section 2 and table 10 of the appendix. The
networks between the two ends are not in the authors' release. What the paper's text says is marked "text" here; a
"reading" is ours, chosen so that the multiply-adds equal table 10's: to its second decimal, but for step 15, where
ConvNeXt-T itself counts 4.46 and the table says 4.49.

- Steps 0 to 4 are ResNet's bottleneck. The first block of stages 2 to 4 halves the side in its spatial convolution, and
  in a 1x1 convolution of stride 2 on the shortcut (text). The patchify stem keeps a norm and an activation (reading).
- From step 5 on, the hidden width is four times a block's output, also where its input is narrower (reading). The first
  block of stage 1, whose input has its output's shape, has no projection any more (reading).
- Steps 6 to 13: where a block halves the side, the depthwise convolution keeps the narrower input's channels, and the
  first 1x1 convolution widens from there (reading).
- Step 12 leaves one activation a block, between the 1x1 convolutions (text); the stem's goes too (reading).
- Step 13 leaves one norm a block, before the 1x1 convolutions (text); those of the stem and the shortcuts go too
  (reading: the text adds norms there in step 15). A convolution has a bias unless a batch norm follows it (reading).
- Step 14: table 10 rises from 4.15 to 4.46, which no norm costs, and the text is silent on it. Reading: every block is
  now as wide as its stage, so that the strided depthwise convolution doubles the channels, and the shortcut is a 2x2
  convolution of stride 2. Other structures cost the same; this one keeps the downsampling in the block.
- Step 15: 2x2 convolutions of stride 2 between the stages, and LayerNorms before each, after the stem and after the
  pooling (text). Layer scale joins here (reading: the paper counts it as part of the training recipe).

Shapes: ``N`` images, ``C`` channels, ``H`` by ``W`` pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.errors import SettingsError
from convnext.models.convnext import LayerNorm2d, StochasticDepth
from convnext.models.registry import register_model


@dataclass(frozen=True)
class Step:
    """One network of the roadmap; the switches' defaults are ResNet-50's.

    Attributes:
        number: index in the paper's order, from 0.
        name: what changed.
        gflops: multiply-adds of one 224 x 224 image, in 1e9; published (table 10).
        imagenet_top1: accuracy in percent, the mean of three runs; published (table 10), not measured here.
        adopted: whether the paper kept the change.
        depths: blocks of each stage (section 2.2).
        patchify: stem of one convolution whose stride is its kernel size (section 2.2).
        depthwise: one group a channel in the spatial convolution (section 2.3).
        wider: 1.5 times the base width (section 2.3).
        inverted: blocks from ``dim`` over ``4 * dim`` to ``dim`` channels, not over ``dim / 4`` (section 2.4).
        depthwise_first: the spatial convolution before both 1x1 convolutions, not between them (section 2.5).
        kernel_size: of the spatial convolution (section 2.5).
        gelu: GELU in place of ReLU (section 2.6).
        fewer_activations: one activation a block (section 2.6).
        fewer_norms: one norm a block (section 2.6).
        layer_norm: layer normalization in place of batch normalization (section 2.6).
        downsampling: what halves the side (section 2.6, and the module's docstring): ``"block"``, the first block of a
            stage; ``"wide block"``, the same with step 14's widths and shortcut; ``"layer"``, a layer of its own.
    """

    number: int
    name: str
    gflops: float
    imagenet_top1: float
    adopted: bool = True
    depths: tuple[int, ...] = (3, 4, 6, 3)
    patchify: bool = False
    depthwise: bool = False
    wider: bool = False
    inverted: bool = False
    depthwise_first: bool = False
    kernel_size: int = 3
    gelu: bool = False
    fewer_activations: bool = False
    fewer_norms: bool = False
    layer_norm: bool = False
    downsampling: Literal["block", "wide block", "layer"] = "block"


# Name, published gflops and top-1, and what changes from the step before.
_CHANGES: tuple[tuple[str, float, float, dict[str, Any]], ...] = (
    ("stage ratio", 4.53, 79.36, {"depths": (3, 3, 9, 3)}),
    ("patchify stem", 4.42, 79.51, {"patchify": True}),
    ("depthwise convolution", 2.35, 78.28, {"depthwise": True}),
    ("width", 5.27, 80.50, {"wider": True}),
    ("inverted bottleneck", 4.64, 80.64, {"inverted": True}),
    ("depthwise moved up", 4.07, 79.92, {"depthwise_first": True}),
    ("kernel size 5", 4.10, 80.35, {"kernel_size": 5}),
    ("kernel size 7", 4.15, 80.57, {"kernel_size": 7}),
    ("kernel size 9", 4.21, 80.57, {"kernel_size": 9, "adopted": False}),
    ("kernel size 11", 4.29, 80.47, {"kernel_size": 11, "adopted": False}),
    ("ReLU to GELU", 4.15, 80.62, {"gelu": True, "kernel_size": 7}),
    ("fewer activations", 4.15, 81.27, {"fewer_activations": True}),
    ("fewer norms", 4.15, 81.41, {"fewer_norms": True}),
    ("BN to LN", 4.46, 81.47, {"layer_norm": True, "downsampling": "wide block"}),
    ("separate downsampling", 4.49, 81.97, {"downsampling": "layer"}),
)


def _following(step: Step, change: tuple[str, float, float, dict[str, Any]]) -> Step:
    name, gflops, top1, switches = change
    switches = {"adopted": True, **switches}
    return replace(step, number=step.number + 1, name=name, gflops=gflops, imagenet_top1=top1, **switches)


STEPS: tuple[Step, ...] = tuple(accumulate(_CHANGES, _following, initial=Step(0, "ResNet-50", 4.09, 78.82)))
LAST = STEPS[-1].number


class Pointwise(nn.Linear):
    """1x1 convolution of ``(N, in, H, W)`` to ``(N, out, H, W)``, its weight shaped as ConvNeXt's linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels; see the class."""
        y: Tensor = F.conv2d(x, self.weight[:, :, None, None], self.bias)
        return y


class RoadmapBlock(nn.Module):
    """The residual block of every step (figures 3 and 4), from ``in_dim`` over ``hidden`` to ``dim`` channels.

    The layers are named by their role, after ConvNeXt's block: ``pwconv1`` and ``pwconv2`` are the 1x1 convolutions,
    ``dwconv`` the spatial one (dense before step 3), ``norm`` the norm behind it, ``pwnorm1`` and ``pwnorm2`` those
    that step 13 removes. In training a sample skips the block with probability ``drop``; ``layer_scale`` is the initial
    value of the factor ``gamma`` on the residual branch, None for no factor.
    """

    def __init__(
        self, step: Step, in_dim: int, dim: int, hidden: int, stride: int, drop: float, layer_scale: float | None
    ) -> None:
        super().__init__()
        self.depthwise_first = step.depthwise_first
        wide = step.downsampling == "wide block"
        self.crop = wide and stride == 2  # of an odd side, 2x2 kernels leave the last row out; the others do not
        before = in_dim if step.depthwise_first else hidden
        after = dim if step.depthwise_first and wide else before
        kernel, groups, bias = step.kernel_size, before if step.depthwise else 1, step.fewer_norms
        self.dwconv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=step.layer_norm)
        self.norm = _norm(step, after)
        self.pwconv1 = Pointwise(after if step.depthwise_first else in_dim, hidden, bias=bias)
        self.pwnorm1 = nn.Identity() if step.fewer_norms else _norm(step, hidden)
        self.act = _act(step)
        self.pwconv2 = Pointwise(hidden, dim, bias=bias)
        self.pwnorm2 = nn.Identity() if step.fewer_norms else _norm(step, dim)
        self.other_act = nn.Identity() if step.fewer_activations else _act(step)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = StochasticDepth(drop)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_dim != dim:
            self.shortcut.append(nn.Conv2d(in_dim, dim, stride if wide else 1, stride, bias=bias))
            if not step.fewer_norms:
                self.shortcut.append(_norm(step, dim))

    def _spatial(self, x: Tensor) -> Tensor:
        y: Tensor = self.other_act(self.norm(self.dwconv(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_dim, H, W)`` to ``(N, dim, H / stride, W / stride)``."""
        if self.crop:
            x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
        y = self._spatial(x) if self.depthwise_first else x
        y = self.act(self.pwnorm1(self.pwconv1(y)))
        y = y if self.depthwise_first else self._spatial(y)
        y = self.pwnorm2(self.pwconv2(y))
        if self.gamma is not None:
            y = self.gamma[:, None, None] * y
        out: Tensor = self.other_act(self.shortcut(x) + self.drop_path(y))
        return out


class Roadmap(nn.Module):
    """Image classifier of any step of the roadmap.

    All weights are drawn by PyTorch's defaults, at every step, so that two steps differ in the network alone. The
    names are those of `convnext.models.convnext.ConvNeXt`: its state dict loads strictly into the last step. ResNet's
    does into step 0 once its layers are called by the same names.

    Args:
        step: number of one of `STEPS`, or switches of your own, such as ``replace(STEPS[15], kernel_size=5)``.
        num_classes: size of the output.
        in_channels: channels of the images: 3 for RGB, 1 for grey.
        patch_size: pixels of the image's side to one position of the first stage: 4 in the paper; 2 and 1 keep small
            images large enough. The patchify stem is a convolution of this kernel and stride. ResNet's stem is, for 4,
            a 7x7 convolution of stride 2 and a max-pool; for 2 and 1, a 3x3 convolution of that stride.
        depths: blocks of each stage, in place of the step's; any number of stages. Where steps 0 and 1 are given the
            same, they are the same network.
        width: base width before step 4, 64 in the paper; from there on 1.5 times of it. Even. Each stage doubles it.
        stochastic_depth: skip probability of the last block; those before rise linearly from 0.
        layer_scale: initial value of ``gamma`` in the last step; ``None`` for none there. Steps before it have none.

    Attributes:
        step: the switches.
        stride: pixels of the image's side to one position of the last feature map; the least side of an image.
        num_features: channels of the last feature map.

    Raises:
        SettingsError: unknown step, or a value out of its bounds.
    """

    def __init__(
        self,
        step: int | Step,
        num_classes: int = 1000,
        in_channels: int = 3,
        patch_size: int = 4,
        depths: Sequence[int] | None = None,
        width: int = 64,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = 1e-6,
    ) -> None:
        super().__init__()
        if not isinstance(step, Step):
            if step not in range(len(STEPS)):
                raise SettingsError(f"the roadmap has no step {step}: it goes from 0 (ResNet-50) to 15 (ConvNeXt-T)")
            step = STEPS[step]
        self.step = step
        depths = step.depths if depths is None else tuple(depths)
        if patch_size not in (1, 2, 4):
            raise SettingsError(f"patch_size must be 1, 2 or 4: got {patch_size}")
        if not depths or min(depths) < 1:
            raise SettingsError(f"depths must name at least one stage, each of at least one block: got {depths}")
        if width < 2 or width % 2:
            raise SettingsError(f"width must be even and positive, for its 1.5-fold is used too: got {width}")
        separate = step.downsampling == "layer"
        base = width * 3 // 2 if step.wider else width
        widths = [base * 2**stage for stage in range(len(depths))]
        dims = widths if step.inverted else [4 * width for width in widths]
        self.stride = patch_size * 2 ** (len(depths) - 1)
        self.num_features = dims[-1]

        last = max(sum(depths) - 1, 1)
        rates = (stochastic_depth * number / last for number in range(sum(depths)))
        self.downsample_layers = nn.ModuleList([_stem(step, in_channels, base, patch_size)])
        self.stages = nn.ModuleList()
        dim = base  # channels so far
        for stage, (depth, next_dim) in enumerate(zip(depths, dims, strict=True)):
            if stage > 0:
                downsample = nn.Sequential()
                if separate:
                    downsample.extend([_norm(step, dim), nn.Conv2d(dim, next_dim, kernel_size=2, stride=2)])
                    dim = next_dim
                self.downsample_layers.append(downsample)
            hidden = 4 * widths[stage] if step.inverted else widths[stage]
            blocks = nn.Sequential()
            for block in range(depth):
                stride = 2 if block == 0 and stage > 0 and not separate else 1
                scale = layer_scale if separate else None
                blocks.append(RoadmapBlock(step, dim, next_dim, hidden, stride, next(rates), scale))
                dim = next_dim
            self.stages.append(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6) if separate else nn.Identity()
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        logits: Tensor = self.head(self.norm(x.mean((-2, -1))))
        return logits


@register_model("roadmap", source="Liu et al. 2022, section 2: `convnext roadmap`", parameters=28_589_128, gmacs=4.456)
def roadmap(
    num_classes: int = 1000,
    step: int = LAST,
    depths: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
    patch_size: int = 4,
    in_channels: int = 3,
    stochastic_depth: float = 0.0,
    layer_scale: float | None = 1e-6,
) -> Roadmap:
    """A `Roadmap` by ConvNeXt's settings: ``dims`` are those that the last step has; of them the first decides."""
    # The paper widens the base width by 1.5 on the way.
    width = 64 if dims is None else 2 * max(1, round(dims[0] / 3))
    return Roadmap(step, num_classes, in_channels, patch_size, depths, width, stochastic_depth, layer_scale)


def _norm(step: Step, dim: int) -> nn.Module:
    return LayerNorm2d(dim, eps=1e-6) if step.layer_norm else nn.BatchNorm2d(dim)


def _act(step: Step) -> nn.Module:
    return nn.GELU() if step.gelu else nn.ReLU()


def _stem(step: Step, in_channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """Images ``(N, in_channels, H, W)`` to ``(N, dim, H / patch_size, W / patch_size)``."""
    if step.patchify:
        kernel, stride, padding = patch_size, patch_size, 0
    else:
        kernel, stride, padding = {4: (7, 2, 3), 2: (3, 2, 1), 1: (3, 1, 1)}[patch_size]
    stem = nn.Sequential(nn.Conv2d(in_channels, dim, kernel, stride, padding, bias=step.fewer_norms))
    if not step.fewer_norms or step.downsampling == "layer":
        stem.append(_norm(step, dim))
    if not step.fewer_activations:
        stem.append(_act(step))
    if not step.patchify and patch_size == 4:
        stem.append(nn.MaxPool2d(3, 2, 1))
    return stem
