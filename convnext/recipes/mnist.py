"""MNIST from scratch in some minutes on two CPU cores.

Grey images of 28x28 px, enlarged to 32 so that no stage loses a row; shifts, and no flip: a mirrored digit is none.

Command: ``convnext train mnist --data.root DIR``, where DIR gets the download.
"""

from convnext.recipes.common import small as _small

SETTINGS = _small.SETTINGS.replace(
    epochs=6, model={"dims": (32, 64, 128)}, data={"name": "mnist"}, augment={"crop_padding": 3, "flip": 0.0}
)
