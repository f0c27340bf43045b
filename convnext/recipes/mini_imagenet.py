"""mini-ImageNet as a classification of its 100 classes, from scratch at 80 px.

Three stages behind a stem of patch size 4; random areas and TrivialAugment, since 480 images a class are few. Training
and test images are of the same classes here, where few-shot learning has classes of its own for each.

Command: ``convnext train mini-imagenet --data.root DIR``, where DIR has the images: there is no official download.
"""

from convnext.recipes.common import small as _small

SETTINGS = _small.SETTINGS.replace(
    epochs=60,
    model={"depths": (2, 4, 2), "patch_size": 4, "stochastic_depth": 0.05},
    data={"name": "mini-imagenet", "image_size": 80},
    augment={"crop": "resized", "crop_scale": (0.25, 1.0), "policy": "trivialaugment"},
    optimizer={"warmup_epochs": 3.0},
)
