"""ConvNeXt-XL from ImageNet-22K, fine-tuned on ImageNet-1K at 224 px, as in the paper.

Reproduces "A ConvNet for the 2020s" (Liu et al. 2022, arXiv 2201.03545, section 3 and appendix A) with the settings of
the authors' training guide, from their weights: 30 epochs of AdamW at 5e-5, layer by layer lower towards the input, no
Mixup or CutMix, and a classifier that starts close to zero. Other sizes bring their own stochastic depth and averaging;
RandAugment differs as ``imagenet1k-tiny`` says.

Command: ``convnext train imagenet1k-xlarge-22k-ft --data.root DIR``, on few GPUs with ``--gradient-accumulation 32`` or
more; or ``--model.name convnext_tiny`` (``_small``, ``_base``, ``_large``).
"""

from typing import Any

from convnext.recipes import Published, imagenet1k_tiny
from convnext.weights.catalogue import top1_by_model

SETTINGS = imagenet1k_tiny.SETTINGS.replace(
    epochs=30,
    batch_size=512,
    ema_decay=0.9999,
    model={"name": "convnext_xlarge", "weights": "in22k", "stochastic_depth": 0.4, "head_init_scale": 0.001},
    augment={"mixup": 0.0, "cutmix": 0.0},
    optimizer={
        "lr": 5e-5,
        "reference_batch_size": 512,
        "warmup_epochs": 0.0,
        "weight_decay": 1e-8,
        "layer_decay": 0.8,
    },
)
BY_MODEL: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"model.stochastic_depth": 0.0, "ema_decay": None},
    "convnext_small": {"model.stochastic_depth": 0.1, "ema_decay": None},
    "convnext_base": {"model.stochastic_depth": 0.2, "ema_decay": None},
    "convnext_large": {"model.stochastic_depth": 0.3, "ema_decay": None},
}
PUBLISHED = Published(top1_by_model("in22k_ft_in1k"), "top-1", "val", imagenet1k_tiny.SOURCE)
