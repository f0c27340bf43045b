"""ConvNeXt-T on Imagenette at 160 px from scratch, 100 epochs with batches of 64.

Reproduces a published run: ``imagenette160-tiny`` with batches of 64; the rate doubles with the batch.

Command: ``convnext train imagenette160-tiny-bs64 --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import Published, imagenette160_tiny

SETTINGS = imagenette160_tiny.SETTINGS.replace(batch_size=64)
PUBLISHED = Published({"convnext_tiny": 83.312}, "top-1", "val", imagenette160_tiny.SOURCE)
