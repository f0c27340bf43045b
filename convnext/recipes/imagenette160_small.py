"""ConvNeXt-S on Imagenette at 160 px from scratch, 100 epochs with batches of 32.

Reproduces a published run: ``imagenette160-tiny`` with ConvNeXt-S.

Command: ``convnext train imagenette160-small --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import Published, imagenette160_tiny

SETTINGS = imagenette160_tiny.SETTINGS.replace(model={"name": "convnext_small"})
PUBLISHED = Published({"convnext_small": 85.172}, "top-1", "val", imagenette160_tiny.SOURCE)
