"""Handwritten digits in half a minute on a laptop, on data that scikit-learn brings.

Three stages behind a stem of patch size 1, since the images have 8x8 pixels. No flip: a mirrored digit is none.

Reaches 98.9 to 99.7 % test top-1 over three seeds in less than a minute on a CPU core (``results/digits/convnext``).

Command: ``convnext train digits``.
"""

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.recipes import Measured

SETTINGS = RunSettings(
    epochs=40,
    batch_size=64,
    ema_decay=0.99,
    model=ModelSettings(
        depths=(1, 1, 2), dims=(32, 64, 128), patch_size=1, kernel_size=3, layer_scale=1.0, init="torch"
    ),
    data=DataSettings(name="digits", image_size=8),
    augment=AugmentSettings(crop_scale=(0.6, 1.0), flip=0.0),
    optimizer=OptimizerSettings(lr=2e-3, reference_batch_size=64, warmup_epochs=1),
)
MEASURED = (Measured("98.9 to 99.7 % top-1 over three seeds, test", "results/digits/convnext"),)
