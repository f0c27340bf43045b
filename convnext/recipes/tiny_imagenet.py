"""Tiny ImageNet from scratch: 200 classes at 64 px, with a model that a CPU can train.

Three stages behind a stem of patch size 4, so that the cost of an image is that of CIFAR-10's recipe, with which it
shares the overlapping convolutions, Muon and a start with smaller images; TrivialAugment and random areas, since 500
images a class are few.

Command: ``convnext train tiny-imagenet --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import Measured
from convnext.recipes.common import small as _small

SETTINGS = _small.SETTINGS.replace(
    epochs=30,
    model={"depths": (2, 4, 2), "patch_size": 4, "overlap": True, "stochastic_depth": 0.05},
    data={"name": "tiny-imagenet", "image_size": 64, "start_size": 48},
    augment={"crop": "resized", "crop_scale": (0.25, 1.0), "policy": "trivialaugment"},
    optimizer={"name": "muon", "lr": 4e-3, "momentum": 0.95, "warmup_epochs": 3},
)
BY_MODEL = _small.BY_MODEL
MEASURED = (
    Measured(
        "69.50 % top-1, val, on 20 of the 200 classes in 30 minutes of one core, 64 epochs",
        "results/thirty-minutes/tiny-imagenet/ours",
    ),
)
