"""All of Tiny ImageNet from scratch in two and a half hours on two CPU cores.

Recipe `tiny-imagenet-fast` with a patch size of 2, so that the stages see 27, 13 and 6 positions a side in place of 13,
6 and 3, with fewer channels for it; images grow from 32 to 56 px over most of the epochs; mixing until the last epoch.

Reaches 59.16 % top-1 on the validation images with 3.11 M parameters in 148 minutes on two cores of an AMD EPYC, Zen 5
(``results/tiny-imagenet/long``). What was tried is in ``docs/research/tiny-imagenet.md``.

Command: ``convnext train tiny-imagenet-long --data.root DIR --precision bf16``, where DIR gets the download.
"""

from convnext.recipes import Measured
from convnext.recipes import tiny_imagenet_fast as _tiny_imagenet_fast

SETTINGS = _tiny_imagenet_fast.SETTINGS.replace(
    epochs=42,
    model={"depths": (1, 1, 2), "dims": (48, 128, 384), "patch_size": 2},
    data={"train_size": 56, "full_size_from": 0.85},
    augment={"mix_until": 0.975},
)
BY_MODEL = _tiny_imagenet_fast.BY_MODEL
MEASURED = (Measured("59.16 % top-1, 0.593 macro-F1, val", "results/tiny-imagenet/long"),)
