"""What each corruption does to an image, at any size, in colour and in grey."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import convnext
from convnext.data.sources import ArraySource
from convnext.errors import SettingsError
from convnext.evaluation.corruptions import CORRUPTIONS, SEVERITIES, CorruptedSource, corrupt
from convnext.evaluation.deeper import accuracy_by_corruption
from convnext.evaluation.evaluator import open_run

_GROW = {"gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "brightness", "contrast"}


def _image(size: int, channels: int = 3) -> NDArray[np.uint8]:
    """A smooth picture with a bright square."""
    y, x = np.mgrid[:size, :size] / size
    picture = np.stack([np.sin(6 * x) / 2 + 0.5, y, x * y], axis=2)
    picture[size // 4 : size // 2, size // 4 : size // 2] = (1, 0.2, 0)
    return (255 * picture[..., :channels]).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3), (64, 1), (112, 3)])
def test_each_severity_changes_the_image(name: str, size: int, channels: int) -> None:
    image = _image(size, channels)
    changes = []
    for severity in SEVERITIES:
        changed = corrupt(image, name, severity, 0, 7)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        changes.append(np.abs(changed.astype(int) - image).mean())
    assert 0.3 < min(changes) < max(changes) < 130
    assert changes == sorted(changes) or name not in _GROW or size == 8  # where one draw decides


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_white_and_tiny_images(name: str) -> None:
    for image in (np.zeros((16, 16, 3), np.uint8), np.full((9, 16, 1), 255, np.uint8), np.full((3, 2, 3), 9, np.uint8)):
        assert corrupt(image, name, 5, 0).shape == image.shape


def test_what_is_drawn_depends_on_seed_and_image_alone() -> None:
    image = _image(32)
    for name in CORRUPTIONS:
        assert np.array_equal(corrupt(image, name, 3, 0, 7), corrupt(image, name, 3, 0, 7)), name
    assert not np.array_equal(corrupt(image, "snow", 3, 0, 7), corrupt(image, "snow", 3, 0, 8))
    assert not np.array_equal(corrupt(image, "snow", 3, 0, 7), corrupt(image, "snow", 3, 1, 7))


def test_noise_has_the_published_strength() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupt(grey, "gaussian_noise", 1) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.02)
    assert (np.isin(corrupt(grey, "impulse_noise", 5), (0, 255))).mean() == pytest.approx(0.27, abs=0.01)
    photons = corrupt(grey, "shot_noise", 2) / 255
    assert photons.std() == pytest.approx(np.sqrt(0.5 / 25), rel=0.02)
    assert corrupt(grey, "brightness", 2).mean() == pytest.approx(128 + 0.2 * 255, abs=1)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 4, 0)
    assert corrupt(ramp, "contrast", 3).std() == pytest.approx(0.2 * ramp.std(), rel=0.01)


def test_blurs_keep_the_light_of_an_image() -> None:
    image = _image(64)
    for name in ("defocus_blur", "motion_blur", "glass_blur"):
        assert corrupt(image, name, 5).mean() == pytest.approx(image.mean(), rel=0.06), name


def test_a_corrupted_source_is_what_the_model_sees() -> None:
    images = np.stack([_image(40), _image(40)[::-1]])
    source = ArraySource(images, np.array([0, 1]), 3)
    corrupted = CorruptedSource(source, "gaussian_noise", 2, 16, 0.8)
    assert len(corrupted) == 2
    expected = corrupt(source.picture(1).center(16, 0.8), "gaussian_noise", 2, 0, 1)
    assert np.array_equal(np.asarray(corrupted.load(1)), expected)
    assert corrupted.image_name(1) == source.image_name(1)
    assert corrupted.fingerprint() != CorruptedSource(source, "gaussian_noise", 3, 16, 0.8).fingerprint()


def test_a_model_is_worse_on_corrupted_images(digits_run: convnext.Run) -> None:
    subject = open_run(digits_run.path)
    accuracies = accuracy_by_corruption(subject, ["gaussian_noise"], limit=60)["gaussian_noise"]
    assert len(accuracies) == 5
    assert accuracies[4] < min(accuracies[0], digits_run.report.top1)
    assert accuracies == accuracy_by_corruption(subject, ["gaussian_noise"], limit=60)["gaussian_noise"]
    assert (Path(digits_run.path) / "test_corruptions.json").is_file()


def test_no_such_corruption() -> None:
    with pytest.raises(SettingsError, match=r"'gausian_noise': did you mean gaussian_noise"):
        corrupt(_image(8), "gausian_noise", 1)
    with pytest.raises(SettingsError, match="must be 1 to 5, got 6"):
        corrupt(_image(8), "fog", 6)
