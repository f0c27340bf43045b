"""ConvNeXt, op for op as in "A ConvNet for the 2020s" (Liu et al. 2022, arXiv:2201.03545), and ConvNeXt V2 (Woo et al.
2023, arXiv:2301.00808).

Modules and parameters carry the names of the authors' release (``downsample_layers``, ``stages``, ``dwconv``,
``norm``, ``pwconv1``, ``grn``, ``pwconv2``, ``gamma``, ``head``), so that its checkpoints load with ``strict=True``.
Shapes: ``N`` images, ``C`` channels, ``H`` by ``W`` pixels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels of ``(N, C, H, W)``; returns the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; see the class."""
        # Under the channels_last memory format both permutations are views, and no data moves.
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class GRN(nn.Module):
    """Global response normalization (V2, section 3.2): channels compete by the norm of their feature map.

    Args:
        dim: channels ``C``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C)`` to the same shape."""
        norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        response = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        y: Tensor = self.gamma * (x * response) + self.beta + x
        return y


class StochasticDepth(nn.Module):
    """Drops the branch of samples at random in training, and scales up that of the others (Huang et al. 2016,
    arXiv:1603.09382).

    To the bit torchvision's of mode ``"row"``, without torchvision's import, for which a prediction would wait longer
    than for all else.

    Args:
        p: probability with which a sample is dropped; below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        """What is shown of the module."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """``(N, ...)`` to the same shape."""
        if not self.training or self.p == 0:
            return x
        mask = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * mask.div_(1 - self.p)


class Block(nn.Module):
    """The ConvNeXt block (section 2, figure 4): depthwise convolution, LayerNorm, two linear layers around a GELU.

    Args:
        dim: channels ``C``.
        kernel_size: side of the depthwise kernel, in positions; odd.
        mlp_ratio: width of the hidden layer, as a multiple of ``dim``.
        stochastic_depth: probability with which a sample skips the block in training (section 2.1).
        layer_scale: initial value of the per-channel factor ``gamma`` on the residual branch; ``None`` for no factor.
        grn: whether global response normalization follows the GELU (V2).
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        mlp_ratio: int = 4,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = 1e-6,
        grn: bool = False,
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, mlp_ratio * dim)
        self.act = nn.GELU()
        self.grn = GRN(mlp_ratio * dim) if grn else nn.Identity()
        self.pwconv2 = nn.Linear(mlp_ratio * dim, dim)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = StochasticDepth(stochastic_depth)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)  # linear layers act on the last dimension
        x = self.norm(x)
        x = self.pwconv1(x)
        x = self.act(x)
        x = self.grn(x)
        x = self.pwconv2(x)
        if self.gamma is not None:
            x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        x = shortcut + self.drop_path(x)
        return x


class Whitening(nn.Conv2d):
    """A frozen convolution of 2x2 pixels to channels that are uncorrelated and of variance one over the training
    images, each of them also with its sign turned, and a GELU (Jordan 2024, arXiv:2404.00498, section 3.2).

    Its weights are random until `fit` computes them.

    Args:
        in_channels: channels ``C`` of the images; ``8 * C`` go out.
        stride: 1 or 2 pixels; with 2 the patches do not overlap, and nothing of the images is lost.
    """

    def __init__(self, in_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, 8 * in_channels, 2, stride)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor, eps: float = 5e-4) -> None:
        """Whiten normalized images ``(N, C, H, W)``; variances of noise, far below ``eps``, are not blown up to one."""
        patches = F.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + eps).sqrt()).T.view(-1, self.in_channels, 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, 8 * C, H - 1, W - 1)``, or with stride 2 ``(N, 8 * C, H // 2, W // 2)``."""
        return F.gelu(super().forward(x))


class PooledConv2d(nn.Conv2d):
    """A 3x3 convolution and max-pooling.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        pooling: side and stride of the squares of which the largest value is taken.
    """

    def __init__(self, in_channels: int, out_channels: int, pooling: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, H / pooling, W / pooling)``, rounded down."""
        return F.max_pool2d(super().forward(x), self.pooling)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of ``(N, C, H, W)`` whose statistics stand still where its weights are frozen."""

    def train(self, mode: bool = True) -> "BatchNorm2d":
        """Set the mode, which is that of evaluation for frozen weights."""
        super().train(mode and self.weight.requires_grad)
        return self


class ConvNeXt(nn.Module):
    """ConvNeXt image classifier.

    The paper has four stages behind a stem of patch size 4; any number of stages and other patch sizes are allowed,
    so that small images keep enough resolution. One stage behind patch size 16, without a norm in the stem, is the
    isotropic ConvNeXt (section 3.3). The image side must be at least ``stride`` pixels.

    Args:
        in_channels: channels of the images: 3 for RGB, 1 for grey.
        num_classes: size of the output; 0 leaves the classifier out and returns the normalized features.
        depths: blocks of each stage (section 2.2).
        dims: channels of each stage; as many as ``depths``.
        patch_size: kernel size and stride of the stem's convolution (section 2.2).
        kernel_size: side of the depthwise kernels; odd (section 2.5).
        mlp_ratio: width of a block's hidden layer, as a multiple of the stage's channels (section 2.4).
        stochastic_depth: skip probability of the last block; those before rise linearly from 0.
        layer_scale: initial value of ``gamma``; ``None`` for no layer scale.
        head_init_scale: factor on the initial weights of the classifier (used by the authors when fine-tuning).
        init: ``"paper"`` draws weights from a normal distribution of standard deviation 0.02, truncated, with zero
            biases; ``"torch"`` keeps PyTorch's default, which learns faster in runs of few epochs; ``"dirac"`` is that,
            but the first filters of each convolution of ``pool`` pass on a channel each, as in airbench.
        grn: global response normalization in every block, as in V2, which has no layer scale.
        stem_norm: whether a LayerNorm follows the stem's convolution; without ``pool``.
        overlap: whether the convolutions that shrink the feature map, the stem's among them, see over the edges of
            their patches: kernels of ``2 * stride - 1``, as in PVT v2 (Wang et al. 2022, arXiv:2106.13797).
        pool: whether stem and downsampling are 3x3 convolutions of stride 1, max-pooling, batch normalization and GELU,
            as the layers of airbench (Jordan 2024): more operations and more accuracy for small images.
        whitening: whether a frozen `Whitening` comes before the stem. Its stride is half of a ``patch_size`` of 4; with
            smaller ones it is 1, and takes a pixel from each side of the image.

    Attributes:
        stride: pixels of the image's side to one position of the last feature map.
        smallest: side in pixels of the smallest images.
        num_features: channels of the last feature map, and of the embedding.
        checkpointing: recompute each block in the backward pass in place of keeping its activations: less memory, a
            third more time. False at first.

    Raises:
        ValueError: ``depths`` and ``dims`` differ in length, an even ``kernel_size``, both ``overlap`` and ``pool``, or
            ``init`` dirac without ``pool``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        patch_size: int = 4,
        kernel_size: int = 7,
        mlp_ratio: int = 4,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = 1e-6,
        head_init_scale: float = 1.0,
        init: Literal["paper", "torch", "dirac"] = "paper",
        grn: bool = False,
        stem_norm: bool = True,
        overlap: bool = False,
        pool: bool = False,
        whitening: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not depths:
            raise ValueError(f"depths and dims must have one entry a stage: got depths {depths} and dims {dims}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the feature map's size: got {kernel_size}")
        if pool and overlap:
            raise ValueError("pool and overlap are two ways to shrink the feature map: set one of them")
        self.stride = patch_size * 2 ** (len(depths) - 1)
        whitening_stride = 2 if whitening and patch_size % 4 == 0 else 1
        self.smallest = self.stride + (whitening and whitening_stride == 1)
        self.num_features = dims[-1]
        self.dims = tuple(dims)
        self.checkpointing = False

        self.whitening = Whitening(in_channels, whitening_stride) if whitening else nn.Identity()
        width = 8 * in_channels if whitening else in_channels
        self.downsample_layers = nn.ModuleList()
        for stage, (dim, next_dim) in enumerate(pairwise((width, *dims))):
            stride = 2 if stage else patch_size // whitening_stride
            if pool:
                layers = [PooledConv2d(dim, next_dim, stride), BatchNorm2d(next_dim), nn.GELU()]
            elif stage:
                layers = [LayerNorm2d(dim, eps=1e-6), _downsample(dim, next_dim, stride, overlap)]
            else:
                norm = [LayerNorm2d(next_dim, eps=1e-6)] if stem_norm else []
                layers = [_downsample(dim, next_dim, stride, overlap), *norm]
            self.downsample_layers.append(nn.Sequential(*layers))

        last = max(sum(depths) - 1, 1)
        rates = (stochastic_depth * number / last for number in range(sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, kernel_size, mlp_ratio, next(rates), layer_scale, grn) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self._init, self._head_init_scale = init, head_init_scale
        if init == "paper":
            self.apply(_init_weights)
        elif init == "dirac":
            _pass_on_channels([module for module in self.modules() if isinstance(module, PooledConv2d)])
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one for ``num_classes``, initialised as the first was; 0 for none."""
        device = self.norm.weight.device
        self.head = nn.Linear(self.num_features, num_classes, device=device) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            if self._init == "paper":
                _init_weights(self.head)
            with torch.no_grad():
                self.head.weight.mul_(self._head_init_scale)
                self.head.bias.mul_(self._head_init_scale)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Images ``(N, C, H, W)`` to the feature map of every stage, of strides ``patch_size * 2 ** stage``."""
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} pixels are smaller than the model takes: {self.smallest}"
            )
        x, maps = self.whitening(x), []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            if self.checkpointing and self.training:
                for block in cast(nn.Sequential, stage):
                    x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
            else:
                x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to the last stage's feature map ``(N, dims[-1], H / stride, W / stride)``."""
        return self.forward_stages(x)[-1]

    def embed(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to normalized, pooled features ``(N, num_features)``: what the classifier sees."""
        embedding: Tensor = self.norm(self.forward_features(x).mean((-2, -1)))
        return embedding

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to logits ``(N, num_classes)``.

        Raises:
            ValueError: the images are smaller than the model's stride.
        """
        logits: Tensor = self.head(self.embed(x))
        return logits


def _downsample(in_channels: int, out_channels: int, stride: int, overlap: bool) -> nn.Conv2d:
    if overlap:
        return nn.Conv2d(in_channels, out_channels, 2 * stride - 1, stride, padding=stride - 1)
    return nn.Conv2d(in_channels, out_channels, stride, stride)


def _pass_on_channels(convolutions: Sequence[PooledConv2d]) -> None:
    """Make the first filters of each the identity; ValueError where there are none."""
    if not convolutions:
        raise ValueError("init dirac is for the convolutions of pool: set that too")
    for convolution in convolutions:
        nn.init.dirac_(convolution.weight.data[: convolution.in_channels])


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
