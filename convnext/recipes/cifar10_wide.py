"""CIFAR-10 from scratch to 90.6 % in three quarters of an hour on two fast CPU cores.

Recipe `cifar10-fast` with stages half as wide again, two blocks a stage of half the hidden width, 4 px of border, and
mixing until the last epoch: twice the operations an image.

Reaches 90.64 % test top-1 with 4.15 M parameters in 41 minutes on two cores of an AMD EPYC, Zen 5
(``results/cifar10/wide``), on images that are JPEG files of quality 75. What was tried is in
``docs/research/cifar10.md``.

Command: ``convnext train cifar10-wide --data.root DIR --precision bf16``, where DIR gets torchvision's download; or for
images in folders ``convnext train cifar10-wide --data.name folder --data.root DIR --precision bf16``.
"""

from convnext.recipes import Measured
from convnext.recipes import cifar10_fast as _cifar10_fast

SETTINGS = _cifar10_fast.SETTINGS.replace(
    epochs=28,
    model={"depths": (2, 2, 2), "dims": (96, 384, 384), "mlp_ratio": 2},
    augment={"crop_padding": 4, "mix_until": 0.965},
)
BY_MODEL = _cifar10_fast.BY_MODEL
MEASURED = (Measured("90.64 % top-1, 0.906 macro-F1, test", "results/cifar10/wide"),)
