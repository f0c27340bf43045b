"""ConvNeXt-T on Imagenette at 160 px with colour jitter and more label smoothing, 100 epochs.

Reproduces a published run: ``imagenette160-tiny`` with colour jitter 0.5 and label smoothing 0.2.

Command: ``convnext train imagenette160-tiny-jitter --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import Published, imagenette160_tiny

SETTINGS = imagenette160_tiny.SETTINGS.replace(label_smoothing=0.2, augment={"color_jitter": 0.5})
PUBLISHED = Published({"convnext_tiny": 85.885}, "top-1", "val", imagenette160_tiny.SOURCE)
