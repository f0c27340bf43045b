"""CIFAR-10 from scratch in three quarters of an hour on two CPU cores.

A ConvNeXt of one block a stage, whose stem and downsampling are dense 3x3 convolutions with max-pooling, batch
normalization and GELU, behind a convolution that whitens the images, with 3x3 depthwise kernels on maps of 15, 7 and 3:
1.4 times the operations an image of recipe `cifar10`, and three eighths of its epochs. Batches of 1,000, Muon for every
matrix and every dense filter with steps relative to the weights, a linear decay to zero, and strong label smoothing
follow airbench (Jordan 2024, arXiv:2404.00498), which trains a plain convolutional network.

Reaches 90.12 % test top-1 with 1.85 M parameters in 41 minutes on two cores of an AMD EPYC (``results/cifar10/fast``),
on images that are JPEG files of quality 75. What was tried is in ``docs/research/cifar10.md``.

Command: ``convnext train cifar10-fast --data.root DIR --precision bf16``, where DIR gets torchvision's download; or for
images in folders ``convnext train cifar10-fast --data.name folder --data.root DIR --precision bf16``.
"""

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.recipes import Measured

SETTINGS = RunSettings(
    epochs=30,
    batch_size=1000,
    label_smoothing=0.2,
    eval_every=2,
    model=ModelSettings(
        depths=(1, 1, 1),
        dims=(64, 256, 256),
        patch_size=2,
        kernel_size=3,
        layer_scale=1.0,
        init="torch",
        pool=True,
        whitening=True,
    ),
    data=DataSettings(name="cifar10", image_size=32, start_size=24, full_size_from=0.65, val_fraction=0.02),
    augment=AugmentSettings(
        crop="padding", crop_padding=2, cutmix=1.0, mix_probability=0.5, mix_by="element", mix_until=0.94
    ),
    optimizer=OptimizerSettings(
        name="muon",
        muon_filters=True,
        muon_relative_lr=0.17,
        lr=6e-3,
        reference_batch_size=1000,
        min_lr=0.0,
        schedule="linear",
        warmup_epochs=3.0,
        weight_decay=0.05,
        momentum=0.6,
    ),
)
# Relative steps were tried for ConvNeXt alone.
_BASELINES = {
    "optimizer.muon_relative_lr": None,
    "optimizer.lr": 1e-2,
    "optimizer.weight_decay": 0.5,
    "optimizer.momentum": 0.95,
}
# Swin is scaled to about the operations of an image of ResNet-18 and ours.
BY_MODEL = {
    "resnet18": _BASELINES,
    "resnet50": _BASELINES,
    "swin_t": _BASELINES | {"model.depths": (2, 2, 2, 2), "model.dims": (64, 128, 256, 512)},
}
MEASURED = (Measured("90.12 % top-1, 0.901 macro-F1, test", "results/cifar10/fast"),)
