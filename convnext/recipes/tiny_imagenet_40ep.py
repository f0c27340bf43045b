"""Tiny ImageNet in 40 epochs: ConvNeXt-T, ResNet-50 and Swin-T under the same augmentation.

Reproduces a published comparison of which these are known: the paper's augmentation with AutoAugment in place of
RandAugment, 40 epochs, and that ConvNeXt-T was ahead of ResNet-50. Ours are 64 px behind stems of stride 2, batches of
128 at 5e-4, and 5 epochs of warm-up. Theirs are said to be test numbers; here they are of the
validation images, since the labels of the others are not public.

Command: ``convnext train tiny-imagenet-40ep --data.root DIR``, then with ``--model.name resnet50`` and ``swin_t``.
"""

from convnext.recipes import Published, imagenet1k_tiny

SETTINGS = imagenet1k_tiny.SETTINGS.replace(
    epochs=40,
    batch_size=128,
    ema_decay=None,
    model={"patch_size": 2},
    data={"name": "tiny-imagenet", "image_size": 64, "center_crop": 1.0},
    augment={"policy": "autoaugment", "autoaugment": "imagenet"},
    optimizer={"lr": 5e-4, "reference_batch_size": 128, "warmup_epochs": 5.0},
)
SOURCE = "others; the comparison's author is not known to us"
PUBLISHED = Published({"convnext_tiny": 60.17, "resnet50": 54.72}, "top-1", "test", SOURCE)
