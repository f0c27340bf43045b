"""ConvNeXt-T on Food-101 from scratch: 100 epochs at 224 px.

Reproduces a published run of which these are known: AdamW at the paper's rate for its batch (4e-3 x 256 / 4096), weight
decay 0.05, 20 epochs of warm-up, cosine, mixed precision, and gradients clipped at 5. The rest is the paper's, as in
``imagenet1k-tiny``, without the average of the weights.

Command: ``convnext train food101-tiny --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes import Published, imagenet1k_tiny

SETTINGS = imagenet1k_tiny.SETTINGS.replace(
    epochs=100, batch_size=256, ema_decay=None, data={"name": "food101"}, optimizer={"clip_norm": 5.0}
)
SOURCE = "others; the run's author is not known to us"
PUBLISHED = Published({"convnext_tiny": 74}, "top-1", "test", SOURCE, about=True)
