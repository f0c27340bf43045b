"""Copies of a photograph are recognised however they were saved, and photographs that look alike from afar are none."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from convnext.data.audit.check import check
from convnext.data.audit.duplicates import find_copies
from convnext.data.audit.signatures import READING, alike, same_in_detail, signature
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from tests.support.photographs import SIDE, patches


def saved(image: Image.Image, kind: str, **options: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Image.open(stream).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((SIDE // 2, SIDE // 2)),
    "double": lambda image: image.resize((2 * SIDE, 2 * SIDE)),
    "squeezed": lambda image: image.resize((SIDE // 2, SIDE)),
    "jpeg": lambda image: saved(image, "JPEG", quality=40),
    "gif": lambda image: saved(image, "GIF"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(change: str) -> None:
    images = [image for image in patches() if np.asarray(image.convert("L")).std() > 10]  # the sky is too flat
    assert len(images) > 30
    for number, image in enumerate(images):
        findings = check(divided([image, CHANGES[change](image)]), workers=0)
        assert len(findings.leaks) == 1, number


@dataclass(frozen=True)
class Pictures(ArraySource):
    """Pictures of several sizes."""

    pictures: tuple[Image.Image, ...] = ()

    def raw(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(self.pictures[index])


def pictures(images: list[Image.Image]) -> Pictures:
    return Pictures(np.empty(0, np.uint8), np.zeros(len(images), np.int64), 3, tuple(images))


def divided(images: list[Image.Image]) -> Splits:
    """The last image is the test split, the others are the training split."""
    return Splits(("thing", "other"), pictures(images[:-1]), None, pictures(images[-1:]))


def test_flat_images_are_copies_only_where_they_are_equal() -> None:
    sizes = [(60, 40), (60, 40), (40, 40)]
    white, again, square = (Image.new("RGB", size, "white") for size in sizes)
    findings = check(divided([white, square, Image.new("RGB", (60, 40), "black"), again]), workers=0)
    assert [(leak.copy.number, leak.exact) for leak in findings.leaks] == [(0, True)]
    assert findings.groups == []


def test_photographs_with_the_same_outlines_but_other_details_are_no_copies() -> None:
    """As microscopy, satellite pictures and X-rays are: alike from afar."""
    first, second, outline = patches()[20], patches()[33], patches()[8]

    def mixed(detail: Image.Image) -> Image.Image:
        fine = np.asarray(detail, float) - np.asarray(detail.resize((16, 16)).resize((SIDE, SIDE)), float)
        coarse = np.asarray(outline.resize((16, 16)).resize((SIDE, SIDE)), float)
        return Image.fromarray(np.clip(coarse + fine, 0, 255).astype(np.uint8))

    one, other = mixed(first), mixed(second)
    assert alike(signature(one)[None], signature(other)[None]) > 0
    assert same_in_detail(one, saved(one, "JPEG", quality=50))
    assert not same_in_detail(one, other)
    assert check(divided([one, other]), workers=0).leaks == []


def test_frames_of_a_film_do_not_all_hang_on_the_first() -> None:
    """Each is like the next; those far from each other are both originals."""
    start, end = (np.asarray(patches()[number], float) for number in (0, 20))
    frames = [Image.fromarray((start + (end - start) * t).astype(np.uint8)) for t in np.linspace(0, 1, 15)]
    readings = np.zeros(len(frames), READING)
    for number, frame in enumerate(frames):
        readings[number] = (True, bytes([number] * 16), SIDE, SIDE, "RGB", 0, 0, 0, signature(frame))
    copies = find_copies(readings, np.zeros(len(frames), np.int64), lambda *_: True, lambda blocks: blocks)
    originals = np.flatnonzero(copies.within < 0)
    assert 2 <= len(originals) < len(frames) / 2
    assert np.isin(copies.within[copies.within >= 0], originals).all()


def distinct(levels: NDArray[np.float64]) -> NDArray[np.void]:
    """Readings of as many images of 64 px with these signatures."""
    readings = np.zeros(len(levels), READING)
    readings["readable"] = True
    readings["digest"] = [number.to_bytes(16, "big") for number in range(1, len(levels) + 1)]
    readings["width"] = readings["height"] = 64
    readings["signature"] = levels.clip(-127, 127)
    return readings


def test_copies_are_found_wherever_they_lie_among_thousands() -> None:
    """In another block, another tile and another split."""
    generator = np.random.default_rng(0)
    levels = generator.normal(0, 40, (9000, 16, 16))
    chosen = generator.choice(9000, 200, replace=False)
    originals, repeats = chosen[:100], chosen[100:]
    levels[repeats] = levels[originals] + generator.normal(0, 4, (100, 16, 16))
    splits = np.arange(9000) // 6000
    copies = find_copies(distinct(levels), splits, lambda *_: True, lambda blocks: blocks)
    links = np.maximum(copies.across, copies.within)
    pairs = {frozenset((index, int(links[index]))) for index in np.flatnonzero(links >= 0).tolist()}
    assert pairs == {frozenset(pair) for pair in zip(originals.tolist(), repeats.tolist(), strict=True)}
    leaks = np.flatnonzero(copies.across >= 0)
    assert len(leaks) > 20
    assert (splits[leaks] == 0).all()


def test_a_leak_is_found_where_the_test_image_is_a_copy_itself() -> None:
    generator = np.random.default_rng(0)
    levels = generator.normal(0, 40, (5000, 16, 16))
    levels[1] = levels[0] + generator.normal(0, 10, (16, 16))
    levels[4999] = levels[1] + generator.normal(0, 10, (16, 16))  # too far from the first
    splits = (np.arange(5000) < 2).astype(np.int64)
    copies = find_copies(distinct(levels), splits, lambda *_: True, lambda blocks: blocks)
    assert copies.within[1] == 0
    assert copies.across[4999] == 1
    assert copies.linked(np.arange(5000)).sum() == 2
