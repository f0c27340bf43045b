"""From a picture to the pixels that a backend takes."""

import numpy as np

from convnext.data.images import Picture
from convnext.inference.backends import Backend, Images


def prepare(picture: Picture, backend: Backend) -> Images:
    """The pixels ``(H, W, C)`` that a backend takes: all of the image, or its `center`.

    Raises:
        UnreadableImageError: the image cannot be decoded.
    """
    if backend.preprocessing:
        pixels = np.asarray(picture.decode())
        return pixels[..., None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(picture.center(backend.info.image_size, backend.info.center_crop))
