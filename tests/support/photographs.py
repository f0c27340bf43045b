"""Real, small photographs, all different, that are on every machine."""

import io

from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 96


def patches() -> list[Image.Image]:
    """The 48 parts of scikit-learn's two photographs, which share no pixel."""
    return [
        Image.fromarray(photograph[y : y + SIDE, x : x + SIDE])
        for photograph in load_sample_images().images
        for y in range(0, photograph.shape[0] - SIDE, SIDE)
        for x in range(0, photograph.shape[1] - SIDE, SIDE)
    ]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image as a file of Pillow's format ``kind``."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
