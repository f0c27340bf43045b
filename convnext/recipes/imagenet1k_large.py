"""ConvNeXt-L on ImageNet-1K from scratch, as in the paper: 300 epochs at 224 px.

Reproduces "A ConvNet for the 2020s" (Liu et al. 2022, arXiv 2201.03545): the settings of ``imagenet1k-tiny`` with more
stochastic depth. What differs from the authors' training is said there.

Command: ``convnext train imagenet1k-large --data.root DIR``, on few GPUs with ``--gradient-accumulation 32`` or more.
"""

from convnext.recipes import Published, imagenet1k_tiny

SETTINGS = imagenet1k_tiny.SETTINGS.replace(model={"name": "convnext_large", "stochastic_depth": 0.5})
PUBLISHED = Published({"convnext_large": 84.3}, "top-1", "val", imagenet1k_tiny.SOURCE)
