"""Images are resized to the same bits without PyTorch as with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from convnext.data.images import Picture
from convnext.data.interpolation import Pixels, numpy_interpolate, torch_interpolate
from tests.support.photographs import encoded

lengths = st.one_of(st.integers(1, 40), st.integers(1, 300))


@given(
    height=lengths,
    width=lengths,
    new_height=lengths,
    new_width=lengths,
    channels=st.sampled_from([1, 3]),
    black_and_white=st.booleans(),
    by_scale=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=300, deadline=None)
def test_numpy_gives_the_bits_of_torch(
    height: int,
    width: int,
    new_height: int,
    new_width: int,
    channels: int,
    black_and_white: bool,
    by_scale: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, channels), np.uint8)
    if black_and_white:  # overshoots, and is clipped
        pixels = np.where(pixels < 128, 0, 255).astype(np.uint8)
    size: tuple[int, int] | None = (new_height, new_width)
    scales = None
    if by_scale:  # of a box that ends inside the last pixels
        cut_height, cut_width = random.uniform(0, 0.9, 2)
        size, scales = None, (new_height / (height - cut_height), new_width / (width - cut_width))
        scales = (max(scales[0], 1 / height), max(scales[1], 1 / width))
    one, other = (resize(pixels, size, scales) for resize in (torch_interpolate, numpy_interpolate))
    assert one.shape == other.shape
    assert np.array_equal(one, other)


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_come_out_the_same(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size: JPEGs that are decoded at a half or a quarter too, and what is large."""
    photograph = Image.fromarray(load_sample_image("flower.jpg"))
    sizes = ((640, 427), (427, 640), (1701, 1303), (3000, 2000), (300, 200), (100, 20))
    for kind, size in ((kind, size) for kind in ("JPEG", "PNG") for size in sizes):
        raw = encoded(photograph.resize(size), kind)
        results = list[list[Pixels]]()
        for resize in (torch_interpolate, numpy_interpolate):
            monkeypatch.setattr("convnext.data.images.interpolate", resize)
            picture = Picture(raw, channels)
            results.append([picture.center(64), picture.center(224, 0.875), picture.resized((5, 7, 95, 19), 50, 60)])
        for one, other in zip(*results, strict=True):
            assert np.array_equal(one, other), (kind, size)
