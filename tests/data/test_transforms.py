"""Pictures that decode no more than they must, random views of them, and mixed batches."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from simplejpeg import decode_jpeg
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.transforms import v2

from convnext.config import AugmentSettings, DataSettings
from convnext.data.batch_transforms import Normalize, batch_mix
from convnext.data.datasets.load import load_splits
from convnext.data.images import Box, Picture, UnreadableImageError
from convnext.data.interpolation import Pixels, interpolate
from convnext.data.loading.loader import AugmentedImages, TrainSampler, batches
from convnext.data.resizing import sizes_by_epoch
from convnext.data.transforms import EvalTransform, TrainTransform
from convnext.errors import SettingsError
from tests.support.photographs import encoded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A photograph of 1280x854 px."""
    return Image.fromarray(load_sample_image("flower.jpg")).resize((1280, 854), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


SMALL = jpeg(Image.linear_gradient("L").resize((255, 253)).convert("RGB"))


def hwc(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy().astype(np.float64)


@pytest.mark.parametrize("shrink", [1, 1.5, 2, 3, 4, 8, 11])
def test_a_crop_is_pillows_crop(photograph: Image.Image, shrink: float) -> None:
    raw = jpeg(photograph)
    box = (104, 56, 1184, 824)  # multiples of 8: cuts between the pixels of a reduced picture too
    width, height = round((box[2] - box[0]) / shrink), round((box[3] - box[1]) / shrink)
    ours = Picture(raw, 3).resized(box, width, height).astype(np.float64)
    whole = Image.open(io.BytesIO(raw)).convert("RGB")
    theirs = np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC, box=box), np.float64)
    assert ours.shape == theirs.shape == (height, width, 3)
    error = np.abs(ours - theirs)
    assert error.mean() < (0.5 if shrink < 2 else 2.0)  # decoded at reduced size, the picture was filtered differently
    assert error.max() < (3 if shrink < 2 else 60)


@pytest.mark.parametrize(
    ("margin", "decoded_widths"), [(1, (1280, 1280, 640, 320, 160)), (2, (1280, 1280, 1280, 640, 320))]
)
def test_a_crop_that_is_shrunk_is_decoded_at_reduced_size(
    photograph: Image.Image, monkeypatch: pytest.MonkeyPatch, margin: int, decoded_widths: tuple[int, ...]
) -> None:
    raw, widths = jpeg(photograph), []

    def spy(*arguments: object, **options: object) -> np.ndarray:
        pixels: np.ndarray = decode_jpeg(*arguments, **options)
        widths.append(pixels.shape[1])
        return pixels

    monkeypatch.setattr("convnext.data.images.decode_jpeg", spy)
    for size in (854, 428, 427, 213, 106):
        Picture(raw, 3).resized((0, 0, 854, 854), size, size, margin)
    assert tuple(widths) == decoded_widths


@pytest.mark.parametrize("cut", [0, 1, 3, 7])
@pytest.mark.parametrize("size", [24, 50, 64, 107, 213])
def test_evaluation_sees_the_pixels_of_a_whole_decode(photograph: Image.Image, size: int, cut: int) -> None:
    """Of any size: one that is no multiple of 8 does not shift the image that is decoded at reduced size."""
    width, height = photograph.size
    raw = jpeg(photograph.crop((0, 0, width - cut, height - cut)))
    whole = Picture(raw, 3).decode()
    for center_crop in (0.875, 1.0):
        transform = EvalTransform(size, center_crop)
        error = np.abs(hwc(transform(Picture(raw, 3))) - hwc(transform(Picture(whole, 3))))
        assert error.mean() < 0.6


@given(
    box=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(200, 255), st.integers(200, 253)),
    width=st.integers(1, 250),
    height=st.integers(1, 250),
    margin=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_any_box_comes_out_in_the_size_asked_for(box: Box, width: int, height: int, margin: int) -> None:
    assert Picture(SMALL, 3).resized(box, width, height, margin).shape == (height, width, 3)


@pytest.mark.parametrize("size", [7, 32, 224])
def test_the_square_in_the_middle_lies_in_the_image(size: int) -> None:
    """Of 49x49 pixels at 32, for one, 32 / 49 * 49 is less than 32 in floating point."""
    for length in range(1, 300, 3 if size == 224 else 1):
        for shape in ((length, length, 1), (length, length + 1, 1)):
            pixels = EvalTransform(size)(Picture(np.full(shape, 255, np.uint8), 1))
            assert pixels.shape == (1, size, size)
            assert int(pixels.min()) == 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(("length", "breadth"), [(5000, 1), (65000, 1), (20000, 400), (3200, 100), (3201, 100)])
def test_long_thin_images_take_no_more_memory_than_others(
    monkeypatch: pytest.MonkeyPatch, length: int, breadth: int, upright: bool, kind: str
) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, length).astype(np.uint8), (breadth, length))
    raw = jpeg(Image.fromarray(ramp)) if kind == "JPEG" else encoded(Image.fromarray(ramp), kind)
    if upright:
        raw = encoded(Image.fromarray(ramp).transpose(Image.Transpose.ROTATE_90), kind)
    sizes = list[int]()

    def resize(*args: Any) -> Pixels:
        result = interpolate(*args)
        sizes.append(result.size)
        return result

    monkeypatch.setattr("convnext.data.images.interpolate", resize)
    cropped = AugmentSettings(crop="padding", flip=0)
    for transform in (EvalTransform(224), EvalTransform(224, 0.875), TrainTransform(cropped, 224, MEAN)):
        pixels = transform(Picture(raw, 3))
        assert pixels.shape == (3, 224, 224)
        assert abs(float(pixels.float().mean()) - 127) < 2  # the middle
    assert TrainTransform(AugmentSettings(), 224, MEAN)(Picture(raw, 3)).shape == (3, 224, 224)
    assert max(sizes) <= 3 * 32 * 256**2


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [3, 1])
def test_odd_jpegs_come_out_as_pillow_shows_them(
    photograph: Image.Image, mode: str, channels: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = jpeg(photograph.convert(mode), exif=exif)
    picture = Picture(raw, channels)
    assert picture.size == ((1280, 854) if orientation == 1 else (854, 1280))
    whole = Image.open(io.BytesIO(raw)).convert("RGB" if channels == 3 else "L")
    whole = whole if orientation == 1 else whole.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(picture.decode(), float) - np.asarray(whole, float)).mean() < 1.0
    assert picture.resized((0, 0, 854, 854), 32, 32).shape == (32, 32, channels)


@pytest.mark.parametrize("shrink", [1, 4])
def test_damaged_jpegs_are_named(photograph: Image.Image, shrink: int) -> None:
    raw = jpeg(photograph)
    for damaged in (raw[: len(raw) // 2], raw[:-200], raw[:300], b"", b"no image at all"):
        with pytest.raises(UnreadableImageError, match=r"^holiday.jpg: unreadable image \("):
            Picture(damaged, 3, "holiday.jpg").resized((0, 0, 800, 800), 800 // shrink, 800 // shrink)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 16 overlapping photographs of 600x400 px each."""
    root = tmp_path_factory.mktemp("photographs")
    for name in ("china", "flower"):
        (root / "train" / name).mkdir(parents=True)
        image = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for number in range(16):
            crop = image.crop((number, number, 600 + number, 400 + number))
            (root / "train" / name / f"{number}.jpg").write_bytes(jpeg(crop))
    return root


def test_batches_look_like_timms(photographs: Path) -> None:
    """Same files, same kind of crops: the distributions of brightness, colour, contrast and detail agree."""
    from timm.data.dataset import ImageDataset
    from timm.data.loader import create_loader

    epochs = 12
    source = load_splits(DataSettings(root=photographs, val_fraction=0, test_fraction=0.1, mean=MEAN, std=STD)).train
    images = AugmentedImages(source, [TrainTransform(AugmentSettings(), 112, MEAN)] * epochs, seed=0)
    normalize = Normalize(MEAN, STD)
    with batches(images, TrainSampler(len(source), len(source), epochs, seed=0), workers=0) as stream:
        ours = torch.cat([normalize(batch.images) for batch in stream])
    torch.manual_seed(0)
    loader = create_loader(
        ImageDataset(str(photographs / "train")),  # type: ignore[no-untyped-call]
        (3, 112, 112),
        batch_size=32,
        is_training=True,
        color_jitter=0,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    theirs = torch.cat([batch for _ in range(epochs) for batch, _ in loader])
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)) for x in (ours, theirs)]
    means, deviations = [x.mean((2, 3)) for x in (ours, theirs)], [x.std((2, 3)).mean(1) for x in (ours, theirs)]
    for one, other in (*[(means[0][:, c], means[1][:, c]) for c in range(3)], deviations, detail):
        error = torch.sqrt(one.var() / len(one) + other.var() / len(other))
        assert (one.mean() - other.mean()).abs() < 4 * error
        assert 0.8 < one.std() / other.std() < 1.25


def test_normalizing_in_either_memory_format_is_the_same() -> None:
    images = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8)
    normalize = Normalize(MEAN, STD)
    expected = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for form in (torch.contiguous_format, torch.channels_last):
        normalized = normalize(images.contiguous(memory_format=form))
        assert normalized.is_contiguous(memory_format=form)
        assert torch.allclose(normalized, expected, atol=1e-5)
    assert torch.allclose(Normalize((0.5,), (0.25,))(images[:, :1]), (images[:, :1] / 255 - 0.5) / 0.25, atol=1e-5)


def mixed(images: Tensor, labels: Tensor, **changes: object) -> tuple[Tensor, Tensor]:
    mix = batch_mix(AugmentSettings(mix_by="element", **changes), num_classes=5)
    assert mix is not None
    torch.manual_seed(0)
    images, targets = mix(images, labels)
    return images, targets


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_by_element_draws_for_every_image(kind: str) -> None:
    labels = torch.arange(64) % 5
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16)  # each pixel is its label
    out, targets = mixed(images, labels, **{kind: 1.0})
    assert torch.allclose(targets.sum(1), torch.ones(64))
    # The mean pixel is the mean label under the fractions, for a mixture and for a pasted box alike.
    assert torch.allclose(out.mean((1, 2, 3)), (targets * torch.arange(5)).sum(1), atol=1e-4)
    fractions = targets.gather(1, labels[:, None])[:, 0]
    assert len(set(fractions.tolist())) > 30
    whole_pixels = (out == out.round()).all()
    assert whole_pixels == (kind == "cutmix")


def test_mixing_by_element_leaves_some_images_alone() -> None:
    labels = torch.arange(1000) % 5
    images = torch.randn(1000, 1, 4, 4)
    out, targets = mixed(images, labels, mixup=0.8, cutmix=1.0, mix_probability=0.3)
    alone = (out == images).all(3).all(2).all(1)
    assert 650 <= alone.sum() <= 790  # CutMix's smallest boxes cover no pixel
    assert torch.equal(targets[alone].argmax(1), labels[alone])
    assert torch.equal(targets[alone].amax(1), torch.ones(int(alone.sum())))


def test_progressive_resizing_grows_to_the_full_size() -> None:
    assert sizes_by_epoch(DataSettings(image_size=224), 3) == [224] * 3
    assert sizes_by_epoch(DataSettings(image_size=32, start_size=16, full_size_from=0.5), 8) == [
        16,
        20,
        24,
        28,
        32,
        32,
        32,
        32,
    ]
    sizes = sizes_by_epoch(DataSettings(start_size=128), 30)
    assert sizes == sorted(sizes)
    assert sizes[0] == 128
    assert sizes[21:] == [224] * 9
    assert len(set(sizes)) <= 5
    with pytest.raises(SettingsError, match=r"data\.start_size: 64 is more than data\.image_size 32"):
        DataSettings(image_size=32, start_size=64)


def test_training_images_may_stay_smaller_than_those_of_evaluation() -> None:
    assert sizes_by_epoch(DataSettings(image_size=64, train_size=48), 2) == [48, 48]
    smaller = DataSettings(image_size=64, train_size=48, start_size=32, full_size_from=0.5)
    assert sizes_by_epoch(smaller, 8) == [32, 32, 38, 44, 48, 48, 48, 48]
    with pytest.raises(SettingsError, match=r"data\.start_size: 56 is more than data\.train_size 48"):
        DataSettings(image_size=64, train_size=48, start_size=56)
    with pytest.raises(SettingsError, match=r"data\.train_size: 65 is more than data\.image_size 64"):
        DataSettings(image_size=64, train_size=65)


def test_repeated_augmentation_shows_fewer_images_in_more_views(photographs: Path) -> None:
    source = load_splits(DataSettings(root=photographs, val_fraction=0, test_fraction=0.1, mean=MEAN, std=STD)).train
    sampler = TrainSampler(len(source), 9, epochs=2, seed=0, repeats=3)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 2 * (len(source) // 9)
    for batch in keys:
        assert len({index for _, index, _ in batch}) == 3
        assert sorted(repetition for _, _, repetition in batch) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    images = AugmentedImages(source, [TrainTransform(AugmentSettings(), 32, MEAN)] * 2, seed=0)
    first, *others = (images[key] for key in keys[0][:3])
    assert isinstance(first, tuple)
    assert not any(isinstance(other, tuple) and torch.equal(first[0], other[0]) for other in others)
    by_rank = [list(TrainSampler(len(source), 9, 2, 0, rank=rank, world_size=2, repeats=3)) for rank in range(2)]
    assert sorted(by_rank[0][0] + by_rank[1][0]) == sorted(keys[0])


def test_groups_are_read_a_few_at_a_time() -> None:
    groups = np.repeat(np.arange(40), 10)
    sampler = TrainSampler(400, 20, epochs=2, seed=1, groups=groups)
    first, second = ([groups[index] for batch in half for _, index, _ in batch] for half in batches_of(sampler))
    for order in (first, second):
        assert all(len(set(order[start : start + 80])) == 8 for start in range(0, 400, 80))
    assert sorted(first) == sorted(groups)
    assert first != second


def batches_of(sampler: TrainSampler) -> tuple[list[list[tuple[int, int, int]]], list[list[tuple[int, int, int]]]]:
    keys = list(sampler)
    return keys[: len(keys) // 2], keys[len(keys) // 2 :]


def test_evaluation_decodes_the_whole_picture_at_reduced_size(photograph: Image.Image) -> None:
    pixels = hwc(EvalTransform(64, center_crop=0.875)(Picture(jpeg(photograph), 3)))
    resized = photograph.resize((109, 73), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((22, 4, 86, 68)), float)
    assert np.abs(pixels - expected).mean() < 4.0


@pytest.mark.parametrize("channels", [1, 3])
def test_padded_crops_are_those_of_torchvision(channels: int) -> None:
    picture = Picture(np.random.default_rng(0).integers(0, 256, (32, 32, channels), np.uint8), channels)
    ours = TrainTransform(AugmentSettings(crop="padding", crop_padding=4), 32, (0.5,) * channels)
    theirs = v2.Compose([v2.RandomCrop(32, 4, padding_mode="reflect"), v2.RandomHorizontalFlip()])
    pixels = EvalTransform(32)(picture)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = theirs(pixels)
        torch.manual_seed(seed)
        assert torch.equal(ours(picture), expected)
