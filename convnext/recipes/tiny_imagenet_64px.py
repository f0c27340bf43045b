"""Tiny ImageNet at 64 px with ConvNeXt-T behind a stem of patch size 2, 100 epochs.

Reproduces filipbasara0/simple-convnext (GitHub, October 2022), where it took 21 hours on a GTX 1070 Ti; the warm-up
differs as in ``cifar10-64px``. That project counts 22 M parameters, and these depths and dims have 28 M.

Command: ``convnext train tiny-imagenet-64px --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import Published, cifar10_64px

SETTINGS = cifar10_64px.SETTINGS.replace(
    epochs=100,
    batch_size=128,
    model={"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768), "patch_size": 2, "stochastic_depth": 0.1},
    data={"name": "tiny-imagenet"},
    augment={"mix_probability": 0.6},
    optimizer={"lr": 2e-3, "reference_batch_size": 128, "min_lr": 8e-9, "weight_decay": 0.05},
)
PUBLISHED = Published({"convnext_tiny": 0.64}, "F1", "val", cifar10_64px.SOURCE)
