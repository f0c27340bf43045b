"""Fashion-MNIST from scratch in half an hour on one CPU core.

Grey images of 28x28 px; three stages behind a stem of patch size 2, whose convolutions overlap, have 14x14, 7x7 and 4x4
positions. Muon for the linear layers, with twice AdamW's learning rate, learns more in the same epochs; random erasing,
since the images are centred and a run of 20 epochs begins to know them by heart.

Command: ``convnext train fashion-mnist --data.root DIR``, where DIR gets the download. The number is of
``--precision bf16``.
"""

from convnext.recipes import Measured
from convnext.recipes.common import small as _small

SETTINGS = _small.SETTINGS.replace(
    epochs=20,
    model={"overlap": True},
    data={"name": "fashion-mnist", "image_size": 28, "val_fraction": 0.05},
    augment={"crop_padding": 2, "random_erasing": 0.25},
    optimizer={"name": "muon", "lr": 4e-3, "momentum": 0.95},
)
BY_MODEL = _small.BY_MODEL
MEASURED = (
    Measured(
        "93.63 % top-1, 0.936 macro-F1, test, in 29 minutes of one core", "results/thirty-minutes/fashion-mnist/ours"
    ),
)
