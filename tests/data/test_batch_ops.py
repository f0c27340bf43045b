"""The operations of RandAugment and its kind on a batch: each is Pillow's on every image, to a grey level."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from convnext.data.batch_ops import FACTOR, OPS, Affine
from convnext.data.interpolation import Pixels

CPU = torch.device("cpu")
BILINEAR = InterpolationMode.BILINEAR
FILL = (127, 51, 178)
Peer = Callable[[Image.Image, float], Image.Image]


def batch(side: int, channels: int) -> Pixels:
    """Smooth, noisy, dark, of two values, and of one."""
    generator = np.random.default_rng(side)
    y, x = np.mgrid[0:side, 0:side]
    smooth = np.stack([3 * x, 2 * y + 40, 2 * (x + y)], -1)[..., :channels]
    noise = generator.integers(0, 256, smooth.shape)
    images = [
        smooth,
        noise,
        smooth + noise // 4 - 30,
        noise // 9 + 20,
        250 - smooth // 20,
        90 * (noise > 99),
        255 * (noise > 127),
        0 * noise + 77,
    ]
    stacked: Pixels = np.clip(np.stack(images), 0, 255).astype(np.uint8)
    return stacked


def name_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def by_pillow(pixels: Pixels, peer: Peer, strength: float) -> Tensor:
    images = [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
    made = np.stack([np.asarray(peer(image, strength)) for image in images])
    return torch.from_numpy(made.reshape(pixels.shape)).int()


BLENDED: dict[str, Peer] = {
    "Brightness": F.adjust_brightness,
    "Contrast": F.adjust_contrast,
    "Color": F.adjust_saturation,
    "Sharpness": F.adjust_sharpness,
}
OTHERS: list[tuple[str, Peer, list[int]]] = [
    ("Posterize", lambda image, bits: F.posterize(image, int(bits)), [1, 2, 5, 8]),
    ("Solarize", F.solarize, [0, 1, 128, 255, 256]),
    ("Invert", lambda image, _: F.invert(image), [0]),
    ("AutoContrast", lambda image, _: F.autocontrast(image), [0]),
    ("Equalize", lambda image, _: F.equalize(image), [0]),
]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", list(BLENDED))
def test_what_is_blended_is_to_a_grey_level_what_pillow_makes(name: str, channels: int) -> None:
    pixels = batch(40, channels)
    for factor in (0.01, 0.3, 0.77, 1.0, 1.37, 1.99):
        strengths = torch.full((len(pixels),), round(factor * FACTOR), dtype=torch.int32)
        made = OPS[name](torch.from_numpy(pixels), strengths)
        assert made.dtype == torch.uint8
        difference = (made.int() - by_pillow(pixels, BLENDED[name], factor)).abs()
        assert difference.max() <= 1, factor
        assert (difference > 0).float().mean() < 0.12, factor


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("name", "peer", "strengths"), OTHERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_maps_values_is_what_pillow_makes(name: str, peer: Peer, strengths: list[int], channels: int) -> None:
    pixels = batch(33, channels)
    for strength in strengths:
        made = OPS[name](torch.from_numpy(pixels), torch.full((len(pixels),), strength, dtype=torch.int32))
        difference = (made.int() - by_pillow(pixels, peer, float(strength))).abs()
        # Pillow's table for autocontrast is of floating-point numbers, rounded down.
        assert difference.max() <= (name == "AutoContrast")
        assert (difference > 0).float().mean() < 0.01


def test_autocontrast_stretches_every_range_to_the_exact_value() -> None:
    for low in range(0, 256, 5):
        for high in range(low + 1, 256, 3):
            values = torch.arange(low, high + 1)
            made = OPS["AutoContrast"](values.to(torch.uint8)[None, None, :, None], torch.zeros(1))
            assert torch.equal(made.flatten().long(), (values - low) * 255 // (high - low))


def moved(image: Image.Image, **how: Any) -> Image.Image:
    unmoved = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "fill": fill_of(image)}
    made: Image.Image = F.affine(image, **unmoved | how, interpolation=BILINEAR)
    return made


def fill_of(image: Image.Image) -> list[int]:
    return list(FILL[: len(image.getbands())])


def degrees(tangent: float) -> float:
    return math.degrees(math.atan(tangent))


SHEARED, SHIFTED, TURNED = (-0.99, 0.033, 0.5), (-31.9, 0.0, 17.2), (-135.0, 0.0, 4.5, 30.0, 90.0)
MOVED: list[tuple[str, Peer, tuple[float, ...]]] = [
    ("ShearX", lambda image, s: moved(image, shear=[degrees(s), 0.0], center=[0, 0]), SHEARED),
    ("ShearY", lambda image, s: moved(image, shear=[0.0, degrees(s)], center=[0, 0]), SHEARED),
    ("TranslateX", lambda image, s: moved(image, translate=[int(s), 0]), SHIFTED),
    ("TranslateY", lambda image, s: moved(image, translate=[0, int(s)]), SHIFTED),
    ("Rotate", lambda image, s: F.rotate(image, s, interpolation=BILINEAR, fill=fill_of(image)), TURNED),
]


@pytest.mark.parametrize(("side", "channels"), [(64, 3), (33, 1), (8, 3), (224, 3)])
@pytest.mark.parametrize(
    ("name", "peer", "strengths"), MOVED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_moved_is_to_a_grey_level_what_pillow_makes(
    name: str, peer: Peer, strengths: tuple[float, ...], side: int, channels: int
) -> None:
    """But for a few pixels on the very edge."""
    pixels = batch(side, channels)
    affine = Affine(name, strengths, side, FILL[:channels], CPU)
    for number, strength in enumerate(strengths):
        made = affine(torch.from_numpy(pixels), torch.full((len(pixels),), number, dtype=torch.int32))
        difference = (made.int() - by_pillow(pixels, peer, strength)).abs()
        assert (difference > 1).float().mean() <= 0.0005, strength
        assert (difference > 0).float().mean() < 0.03, strength


def test_each_image_has_its_own_strength() -> None:
    pixels = torch.from_numpy(batch(16, 3))
    strengths = torch.arange(len(pixels), dtype=torch.int32)
    affine = Affine("Rotate", [10.0 * number for number in range(len(pixels))], 16, FILL, CPU)
    ops = {name: (op, 1 + strengths) for name, op in OPS.items()} | {"Rotate": (affine, strengths)}
    for name, (op, own) in ops.items():
        own = own * 3000 if name in BLENDED else own
        together = op(pixels, own)
        for number in range(len(pixels)):
            alone = op(pixels[number : number + 1], own[number : number + 1])
            assert torch.equal(alone[0], together[number]), name
