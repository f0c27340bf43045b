"""CIFAR-100 from scratch with a model that a CPU can train.

The settings of our other small data sets, twice as many epochs and more augmentation, since 500 images a class are few.

Command: ``convnext train cifar100 --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes.common import small as _small

SETTINGS = _small.SETTINGS.replace(
    epochs=60,
    model={"stochastic_depth": 0.05},
    data={"name": "cifar100"},
    augment={"policy": "trivialaugment", "random_erasing": 0.1},
    optimizer={"warmup_epochs": 3.0},
)
