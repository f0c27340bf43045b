"""A start for your own images: ConvNeXt-atto at 128 px, strong augmentation, 60 epochs.

Small enough to train on a CPU and hard to overfit; with a GPU and many images raise ``--data.image-size`` and choose a
larger ``--model.name``. With few images start from released weights: ``--model.name convnext_tiny --model.weights
in22k_ft_in1k --data.image-size 224 --epochs 20 --optimizer.lr 1e-4``.

Command: ``convnext train folder --data.root DIR``, where DIR has ``train/<class>/*`` and optionally ``val/`` and
``test/``, or ``<class>/*`` alone.
"""

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings
from convnext.recipes import Expected

SETTINGS = RunSettings(
    epochs=60,
    batch_size=32,
    ema_decay=0.999,
    model=ModelSettings(name="convnext_atto", stochastic_depth=0.05, layer_scale=1.0, init="torch"),
    data=DataSettings(name="folder", image_size=128),
    augment=AugmentSettings(crop_scale=(0.35, 1.0), policy="trivialaugment", erasing=0.1),
    optimizer=OptimizerSettings(lr=1e-3, reference_batch_size=64, warmup_epochs=5, clip_norm=1.0),
)
EXPECTED = Expected("depends on your images", None)
