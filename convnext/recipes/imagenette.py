"""Imagenette from scratch with ConvNeXt-atto at 128 px, for about a twentieth of imagenette160-tiny's compute.

Starts at 64 px and grows to 128; TrivialAugment, CutMix for half of the batches, erasing, and averaged weights. Made
to reach more than the runs of ``imagenette160-tiny`` and its variants; not measured yet.

Command: ``convnext train imagenette --data.root DIR``, where DIR gets the download of the images at 160 px.
"""

from convnext.recipes.common import small as _small

SETTINGS = _small.SETTINGS.replace(
    epochs=100,
    batch_size=64,
    ema_decay=0.999,
    model={"name": "convnext_atto", "depths": None, "dims": None, "patch_size": None, "stochastic_depth": 0.05},
    data={"name": "imagenette160", "image_size": 128, "start_size": 64, "center_crop": 0.9},
    augment={
        "crop": "resized",
        "crop_scale": (0.25, 1.0),
        "policy": "trivialaugment",
        "random_erasing": 0.1,
        "cutmix": 1.0,
        "mix_probability": 0.5,
    },
    optimizer={"warmup_epochs": 5.0},
)
