"""ConvNeXt-T on Imagenette at 160 px from scratch, 100 epochs with batches of 32.

Reproduces a published run of which these are known: AdamW, 100 epochs, batch 32, 160 px and drop path 0.1. Ours are
random areas and flips as the only augmentation, label smoothing 0.1, the paper's schedule, and a rate of 2.5e-4.

Command: ``convnext train imagenette160-tiny --data.root DIR``, where DIR gets the download.
"""

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.recipes import Published

SETTINGS = RunSettings(
    epochs=100,
    batch_size=32,
    label_smoothing=0.1,
    model=ModelSettings(name="convnext_tiny", stochastic_depth=0.1),
    data=DataSettings(name="imagenette160", image_size=160, val_fraction=0.0),
    augment=AugmentSettings(crop="resized", crop_scale=(0.08, 1.0), flip=0.5),
    optimizer=OptimizerSettings(lr=2.5e-4, reference_batch_size=32, warmup_epochs=20, weight_decay=0.05),
)
SOURCE = "others; the run's author is not known to us"
PUBLISHED = Published({"convnext_tiny": 83.389}, "top-1", "val", SOURCE)
