"""ConvNeXt from ImageNet-22K, fine-tuned on ImageNet-1K at 384 px, as in the paper.

Reproduces "A ConvNet for the 2020s" (Liu et al. 2022, arXiv 2201.03545, section 3 and appendix A) with the settings of
``imagenet1k-xlarge-22k-ft`` at 384 px. The authors squeeze a whole picture into the square to evaluate it; here the
square in its middle is kept.

Command: ``convnext train imagenet1k-finetune-384 --data.root DIR`` for ConvNeXt-B (on few GPUs with
``--gradient-accumulation 16`` or more); or ``--model.name convnext_tiny`` (``_small``, ``_large``, ``_xlarge``). From
the weights of ImageNet-1K, where the authors reach 85.1 % (B) and 85.5 % (L): ``--model.weights in1k
--optimizer.layer-decay 0.7 --model.stochastic-depth 0.8`` (L: 0.95).
"""

from typing import Any

from convnext.recipes import Published, imagenet1k_tiny, imagenet1k_xlarge_22k_ft
from convnext.weights.catalogue import top1_by_model

_XLARGE = imagenet1k_xlarge_22k_ft.SETTINGS
_BY_MODEL = imagenet1k_xlarge_22k_ft.BY_MODEL

SETTINGS = _XLARGE.replace(**_BY_MODEL["convnext_base"]).replace(
    **{"model.name": "convnext_base", "data.image_size": 384, "data.center_crop": 1.0}
)
BY_MODEL: dict[str, dict[str, Any]] = {
    **{name: changes for name, changes in _BY_MODEL.items() if name != "convnext_base"},
    "convnext_xlarge": {"model.stochastic_depth": _XLARGE.model.stochastic_depth, "ema_decay": _XLARGE.ema_decay},
}
PUBLISHED = Published(top1_by_model("in22k_ft_in1k_384"), "top-1", "val", imagenet1k_tiny.SOURCE)
