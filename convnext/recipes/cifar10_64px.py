"""CIFAR-10 at 64 px with a stem of patch size 1 and 6.4 M parameters, 100 epochs.

Reproduces filipbasara0/simple-convnext (GitHub, October 2022): Mixup and CutMix drawn by image, neither crop nor flip,
one-cycle cosine. There the 32 px image lies in the middle of a black square of 64 px, and the warm-up takes 30 epochs;
here it is enlarged, and the warm-up takes 25.

Command: ``convnext train cifar10-64px --data.root DIR``, where DIR gets the download.
"""

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.recipes import Published

SETTINGS = RunSettings(
    epochs=100,
    batch_size=256,
    label_smoothing=0.1,
    model=ModelSettings(depths=(2, 2, 2, 2), dims=(64, 128, 256, 512), patch_size=1),
    data=DataSettings(name="cifar10", image_size=64, val_fraction=0.0),
    augment=AugmentSettings(
        crop="none",
        flip=0.0,
        policy="randaugment",
        randaugment_ops=2,
        randaugment_magnitude=9,
        random_erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        mix_probability=0.4,
        mix_by="element",
    ),
    optimizer=OptimizerSettings(
        lr=1e-3, reference_batch_size=256, min_lr=4e-9, warmup_epochs=25, weight_decay=0.1, betas=(0.9, 0.999)
    ),
)
SOURCE = "filipbasara0/simple-convnext, GitHub"
PUBLISHED = Published({"convnext_tiny": 0.92}, "F1", "test", SOURCE)
