"""ConvNeXt-T on ImageNet-1K from scratch, as in the paper: 300 epochs at 224 px.

Reproduces "A ConvNet for the 2020s" (Liu et al. 2022, arXiv 2201.03545, section 3 and appendix A). Two things differ:
torchvision's RandAugment counts magnitudes to 30 and always applies its 2 operations, where the authors' library counts
to 10, varies the magnitude and applies each of 2 half the time; and erased rectangles have the mean colour, not noise.

Command: ``convnext train imagenet1k-tiny --data.root DIR``, on few GPUs with ``--gradient-accumulation 8`` or more.
"""

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.recipes import Published

SOURCE = "Liu et al. 2022, arXiv 2201.03545, and the authors' repository"

SETTINGS = RunSettings(
    epochs=300,
    batch_size=4096,
    label_smoothing=0.1,
    ema_decay=0.9999,
    model=ModelSettings(name="convnext_tiny", stochastic_depth=0.1),
    data=DataSettings(name="imagenet", image_size=224, center_crop=0.875, val_fraction=0.0),
    augment=AugmentSettings(
        crop="resized",
        crop_scale=(0.08, 1.0),
        flip=0.5,
        policy="randaugment",
        randaugment_ops=2,
        randaugment_magnitude=9,
        random_erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
    ),
    optimizer=OptimizerSettings(lr=4e-3, reference_batch_size=4096, min_lr=1e-6, warmup_epochs=20, weight_decay=0.05),
)
PUBLISHED = Published({"convnext_tiny": 82.1}, "top-1", "val", SOURCE)
