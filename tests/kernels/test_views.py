"""Random views of batches against PyTorch's operations, to the bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from convnext.config import AugmentSettings
from convnext.data.batch_augment import BatchAugment
from convnext.data.batch_ops import MATRICES, Affine
from convnext.kernels import build
from convnext.kernels.views import can_view

CPU = torch.device("cpu")
COUNT = 24


def noise(height: int, width: int, channels: int) -> Tensor:
    """Bytes of which many are black or white, so that sums of weights that are negative, too, pass both ends."""
    values = np.random.default_rng(height).integers(-128, 384, (COUNT, height, width, channels))
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 64), (33, 18, 7), (20, 50, 41), (1, 1, 5), (9, 9, 1)])
def test_crops_are_resized_as_pytorch_does(
    height: int, width: int, size: int, channels: int, set_threads: Callable[[int], None]
) -> None:
    augment, mean = AugmentSettings(crop_scale=(0.01, 1.0)), (0.5,) * channels
    one_by_one, chosen = (
        BatchAugment(augment, size, (height, width), mean, 0, CPU, together) for together in (False, None)
    )
    pixels = noise(height, width, channels)
    images = torch.randint(0, COUNT, (50,), generator=torch.Generator().manual_seed(1))
    views = chosen.draw(torch.tensor([[1, index, 0] for index in range(len(images))]))
    views[0, :4] = torch.tensor([0, 0, height, width])
    views[1, :4] = torch.tensor([height - 1, width - 1, 1, 1])
    assert can_view(pixels)
    assert set(views[:, 4].tolist()) == {0, 1}
    expected = one_by_one(pixels, images, views)
    for number in (1, 3):
        set_threads(number)
        assert torch.equal(chosen(pixels, images, views), expected)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*MATRICES])
def test_affine_transforms_are_those_of_pytorchs_operations(
    name: str, channels: int, set_threads: Callable[[int], None]
) -> None:
    size = 19
    pixels = noise(size, size, channels)
    strengths = np.linspace(-1, 1, COUNT) * {"Rotate": 180, "ShearX": 9, "ShearY": 9}.get(name, 40)
    affine = Affine(name, strengths.tolist(), size, (17, 99, 201)[:channels], CPU)
    numbers = torch.arange(COUNT).flip(0)
    expected = affine.by_operations(pixels, numbers)
    for number in (1, 3):
        set_threads(number)
        assert torch.equal(affine(pixels, numbers), expected)


@pytest.mark.usefixtures("compiled")
def test_a_batch_has_the_same_bits_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = AugmentSettings(crop_scale=(0.2, 1.0), policy="trivialaugment", random_erasing=0.3)
    views = BatchAugment(augment, 24, (30, 30), (0.5,) * 3, 0, CPU)
    pixels, keys = noise(30, 30, 3), torch.tensor([[0, index, 0] for index in range(COUNT)])
    assert views.policy is not None
    (changes,) = views.policy.draw(keys, [COUNT])
    drawn = views.draw(keys)
    assert can_view(pixels)
    made = views(pixels, keys[:, 1], drawn, changes)
    monkeypatch.setenv("CONVNEXT_KERNELS", "0")
    build.forget()
    try:
        assert not can_view(pixels)
        assert torch.equal(views(pixels, keys[:, 1], drawn, changes), made)
    finally:
        monkeypatch.undo()
        build.forget()
