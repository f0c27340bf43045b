"""Tiny ImageNet from scratch: 200 classes at 64 px, with a model that a CPU can train.

Three stages behind a stem of patch size 4, so that the cost of an image is that of CIFAR-10's recipe; TrivialAugment
and random areas, since 500 images a class are few.

Command: ``convnext train tiny-imagenet --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import Measured, _small

SETTINGS = _small.SETTINGS.replace(
    epochs=30,
    **{
        "model.depths": (2, 4, 2),
        "model.patch_size": 4,
        "model.stochastic_depth": 0.05,
        "data.name": "tiny-imagenet",
        "data.image_size": 64,
        "augment.crop": "resized",
        "augment.crop_scale": (0.25, 1.0),
        "augment.policy": "trivialaugment",
        "optimizer.warmup_epochs": 3,
    },
)
# At the recipe's learning rate Swin-T stays at chance.
BY_MODEL = {"swin_t": {"optimizer.lr": 5e-4}}
PUBLISHED = None
MEASURED = (
    Measured("60.90 % top-1, val, on 20 of the 200 classes in 26.5 minutes of one core", "results/tiny-imagenet-20"),
)
