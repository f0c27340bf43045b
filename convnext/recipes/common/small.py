"""What our recipes for small data sets share: a run of some dozen epochs that a CPU can bear.

The paper's initial weights and layer scale are made for 300 epochs; with PyTorch's default and layer scale 1 a short
run learns far faster. Three stages behind a stem of patch size 2 leave 8x8 positions of a 32 px image to the last but
one stage, where most of the blocks are. The learning rate is halved with the batch, as the paper scales it.
"""

from convnext.config import AugmentSettings, DataSettings, ModelSettings, OptimizerSettings, RunSettings

SETTINGS = RunSettings(
    epochs=30,
    batch_size=128,
    label_smoothing=0.1,
    ema_decay=0.998,
    model=ModelSettings(depths=(1, 3, 1), dims=(64, 128, 256), patch_size=2, layer_scale=1.0, init="torch"),
    data=DataSettings(image_size=32, val_fraction=0.02),
    augment=AugmentSettings(crop="padding", crop_padding=4),
    optimizer=OptimizerSettings(lr=2e-3, reference_batch_size=128, warmup_epochs=1, weight_decay=0.05, clip_norm=1.0),
)
# Muon is for linear layers. At twice its learning rate Swin-T stays at chance.
BY_MODEL = {
    "resnet18": {"optimizer.name": "adamw", "optimizer.lr": 2e-3},
    "resnet50": {"optimizer.name": "adamw", "optimizer.lr": 2e-3},
    "swin_t": {"optimizer.name": "adamw", "optimizer.lr": 5e-4},
}
