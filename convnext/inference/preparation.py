"""From a picture to the pixels that a backend takes."""

from typing import Protocol

import numpy as np

from convnext.data.images import Picture
from convnext.inference.backends import Images
from convnext.weights.model_info import ModelInfo


class Taker(Protocol):
    """A `convnext.inference.backends.Backend`, or what is known of one: how it takes its images."""

    @property
    def info(self) -> ModelInfo:
        """Its image size and crop."""

    @property
    def preprocessing(self) -> bool:
        """Whether it takes images of any size."""


def prepare(picture: Picture, backend: Taker) -> Images:
    """The pixels ``(H, W, C)`` that a backend takes: all of the image, or its `center`.

    Raises:
        UnreadableImageError: the image cannot be decoded.
    """
    if backend.preprocessing:
        pixels = np.asarray(picture.decode())
        return pixels[..., None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(picture.center(backend.info.image_size, backend.info.center_crop))


def prepare_reduced(picture: Picture, backend: Taker) -> Images:
    """As `prepare`; but all of an image whose shorter edge is more than the backend resizes it to is reduced to that,
    so that what computes over and over, or holds many images, does not do so with whole photographs.

    Raises:
        UnreadableImageError: the image cannot be decoded.
    """
    (width, height), info = picture.size, backend.info
    shorter = round(info.image_size / info.center_crop)
    if not backend.preprocessing or min(width, height) <= shorter:
        return prepare(picture, backend)
    new_width, new_height = (max(shorter * length // min(width, height), 1) for length in (width, height))
    return np.ascontiguousarray(picture.resized((0, 0, width, height), new_width, new_height, margin=2))
