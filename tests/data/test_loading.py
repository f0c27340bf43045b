"""Splits, batches and transforms."""

import multiprocessing
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convnext.config import AugmentSettings, DataSettings
from convnext.data.batch_transforms import Normalize, batch_mix
from convnext.data.datasets.load import load_splits
from convnext.data.images import Picture
from convnext.data.loading.loader import AugmentedImages, Batch, EvalSampler, TrainSampler, batches
from convnext.data.sources import ArraySource, ImageSource
from convnext.data.transforms import EvalTransform, TrainTransform
from convnext.errors import DataError, SettingsError


def digits() -> DataSettings:
    return DataSettings(name="digits", image_size=8)


def identities(source: ImageSource) -> set[bytes]:
    return {source.load(index).tobytes() + bytes([source.targets[index]]) for index in range(len(source))}


def test_digits_splits_are_stratified_seeded_and_disjoint() -> None:
    splits = load_splits(digits())
    assert splits.val is not None
    assert len(splits.train) + len(splits.val) + len(splits.test) == 1797
    assert len(splits.test) == 360
    fractions = np.bincount(splits.test.targets) / 360
    assert np.abs(fractions - np.bincount(splits.train.targets) / len(splits.train)).max() < 0.01
    images = [identities(source) for source in (splits.train, splits.val, splits.test)]
    assert sum(map(len, images)) == len(set.union(*images)) == 1797
    assert load_splits(digits()).fingerprints() == splits.fingerprints()
    assert splits.train.load(0).mode == "L"


def test_statistics_are_those_of_the_training_images() -> None:
    splits = load_splits(digits())
    whole = load_splits(digits().replace(val_fraction=0.0))
    images = np.stack([np.asarray(whole.train.raw(index)) for index in range(len(whole.train))])
    pixels = images / 255
    assert splits.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert splits.std == pytest.approx((pixels.std(),), abs=1e-4)
    normalized = Normalize(whole.mean, whole.std)(torch.from_numpy(images)[:, None])
    assert normalized.mean().item() == pytest.approx(0, abs=1e-3)
    assert normalized.std().item() == pytest.approx(1, abs=1e-3)


def test_folder_with_test(small_folder: Path) -> None:
    splits = load_splits(DataSettings(root=small_folder, val_fraction=0.25))
    assert splits.val is not None
    assert splits.classes == ("0", "1", "2")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45, 15, 15)
    assert Counter(splits.val.targets.tolist()) == {0: 5, 1: 5, 2: 5}
    assert all(splits.test.image_name(index).startswith(str(small_folder / "test")) for index in range(15))
    assert splits.test.load(14).mode == "RGB"


def test_folder_with_val_alone_is_tested_on_it(small_folder: Path) -> None:
    (small_folder / "test").rename(small_folder / "val")
    splits = load_splits(DataSettings(root=small_folder))
    assert splits.test_name == "val"
    assert splits.val is splits.test
    assert len(splits.train) == 60


@pytest.mark.parametrize("inside_train", [True, False])
def test_folder_without_splits_is_split(small_folder: Path, inside_train: bool) -> None:
    shutil.rmtree(small_folder / "test")
    root = small_folder if inside_train else small_folder / "train"
    splits = load_splits(DataSettings(root=root, test_fraction=0.25, val_fraction=0.0))
    assert (len(splits.train), splits.val, len(splits.test)) == (45, None, 15)
    labels = {source.image_name(index) for source in (splits.train, splits.test) for index in range(len(source))}
    assert len(labels) == 60


def test_folder_finds_nested_and_odd_names_and_skips_hidden(small_folder: Path) -> None:
    nested = small_folder / "train" / "0" / "more images"
    nested.mkdir()
    shutil.copy(next((small_folder / "train" / "0").glob("*.png")), nested / "ümlaut.PNG")
    (small_folder / "train" / "0" / "._hidden.png").touch()
    (small_folder / "train" / "0" / "notes.txt").touch()
    (small_folder / "train" / ".cache").mkdir()
    splits = load_splits(DataSettings(root=small_folder, val_fraction=0.0))
    assert len(splits.train) == 61
    assert any(splits.train.image_name(index).endswith("more images/ümlaut.PNG") for index in range(61))


def test_folders_that_cannot_be_used(small_folder: Path, tmp_path: Path) -> None:
    def refused(message: str, **settings: object) -> None:
        with pytest.raises(DataError, match=message) as error:
            load_splits(DataSettings(**settings))
        assert "\n" not in str(error.value)

    refused("needs its folder: give --data.root", name="folder")
    refused("no data set is called 'cifar': did you mean cifar10", name="cifar")
    refused("is not there", root=tmp_path / "missing")
    (tmp_path / "file").touch()
    refused("is not a folder", root=tmp_path / "file")
    (tmp_path / "empty").mkdir()
    refused("has no class folders: expected", root=tmp_path / "empty")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    (tmp_path / "hollow" / "b").mkdir()
    refused("has no images in its class folders", root=tmp_path / "hollow")
    refused("data.mean has 2 values", root=small_folder, mean=(0.5, 0.5))
    (small_folder / "train" / "3").mkdir()
    refused("class folders without images: 3", root=small_folder)
    (small_folder / "train" / "3").rmdir()
    shutil.copytree(small_folder / "test" / "0", small_folder / "test" / "extra")
    refused("classes that the training images lack: extra", root=small_folder)
    for name in ("1", "2"):
        shutil.rmtree(small_folder / "train" / name)
    shutil.rmtree(small_folder / "test")
    refused("one class only", root=small_folder)


def drawn(workers: int, start_step: int = 0, seed: int = 3) -> list[Batch]:
    splits = load_splits(digits())
    augment = AugmentSettings(crop="padding", policy="trivialaugment", random_erasing=0.5, color_jitter=0.4)
    images = AugmentedImages(splits.train, [TrainTransform(augment, 8, splits.mean)] * 2, seed)
    sampler = TrainSampler(len(splits.train), 128, epochs=2, seed=seed, start_step=start_step)
    with batches(images, sampler, workers) as stream:
        return [batch._replace(images=batch.images.clone()) for batch in stream]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in zip(one, other, strict=True)
    )


def test_batches_do_not_depend_on_workers_or_on_where_one_starts() -> None:
    expected = drawn(workers=0)
    assert len(expected) == 2 * (1293 // 128)
    assert same(drawn(workers=2), expected)
    assert same(drawn(workers=1, start_step=13), expected[13:])
    assert not same(drawn(workers=0, seed=4), expected)


def test_a_batch_is_left_alone_until_the_next_is_asked_for() -> None:
    """Though workers write into the memory of those before it as soon as they may."""
    images = AugmentedImages(load_splits(digits()).train, [EvalTransform(8)], seed=0)
    sampler = EvalSampler(1200, 8)
    with batches(images, sampler, workers=0) as stream:
        expected = [batch.images for batch in stream]
    with batches(images, sampler, workers=2) as stream:
        before = next(stream).images
        for count, batch in enumerate(stream, 1):
            assert torch.equal(batch.images, expected[count])
    assert not torch.equal(before, expected[0])


def test_an_epoch_shows_each_image_at_most_once_and_epochs_differ() -> None:
    sampler = TrainSampler(100, 32, epochs=2, seed=0)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 6
    first, second = ([index for batch in keys[start : start + 3] for _, index, _ in batch] for start in (0, 3))
    assert len(set(first)) == len(first) == 96
    assert first != second
    assert {epoch for batch in keys[:3] for epoch, _, _ in batch} == {0}


def test_processes_share_each_batch() -> None:
    whole = list(TrainSampler(100, 32, epochs=1, seed=0))
    by_rank = [list(TrainSampler(100, 32, epochs=1, seed=0, rank=rank, world_size=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert sorted(key for process in by_rank for key in process[step]) == sorted(batch)
    seen = [index for rank in range(3) for batch in EvalSampler(50, 8, rank, 3) for _, index, _ in batch]
    assert sorted(seen) == list(range(50))


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(SettingsError, match="batch_size 64 is more than the 40 training images"):
        TrainSampler(40, 64, epochs=1, seed=0)


def test_evaluation_transform_keeps_the_middle(colour_image: Image.Image) -> None:
    pixels = EvalTransform(16, center_crop=0.5)(Picture(colour_image, 3))
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.uint8
    middle = colour_image.crop((12, 7, 28, 23)).getpixel((8, 8))
    assert isinstance(middle, tuple)
    assert (pixels[:, 8, 8].float() - torch.tensor(middle).float()).abs().max() < 12


@pytest.mark.parametrize("policy", ["none", "randaugment", "autoaugment", "trivialaugment"])
@pytest.mark.parametrize("crop", ["none", "padding", "resized"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_augmentation_gives_the_shape(colour_image: Image.Image, policy: str, crop: str, mode: str) -> None:
    settings = AugmentSettings(crop=crop, policy=policy, color_jitter=0.5, random_erasing=1.0)
    channels = 3 if mode == "RGB" else 1
    transform = TrainTransform(settings, 24, (0.5,) * channels)
    torch.manual_seed(0)
    outputs: list[Tensor] = [transform(Picture(colour_image.convert(mode), channels)) for _ in range(4)]
    assert all(output.shape == (channels, 24, 24) and output.dtype == torch.uint8 for output in outputs)
    assert not torch.equal(outputs[0], outputs[1])


def test_no_augmentation_is_the_evaluation_transform(colour_image: Image.Image) -> None:
    settings = AugmentSettings(crop="none", flip=0.0)
    expected = EvalTransform(24)(Picture(colour_image, 3))
    assert torch.equal(TrainTransform(settings, 24, (0.5,) * 3)(Picture(colour_image, 3)), expected)


def test_mixing_keeps_the_fractions_of_the_classes() -> None:
    images, labels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).clone(), torch.tensor([0, 1, 2, 2])
    assert batch_mix(AugmentSettings(), 3) is None
    mixup = batch_mix(AugmentSettings(mixup=0.8), 3)
    assert mixup is not None
    mixed, fractions = mixup(images, labels)
    assert fractions.shape == (4, 3)
    assert torch.allclose(fractions.sum(1), torch.ones(4))
    fraction = fractions[1, 1].item()  # image 1 is mixed with image 0
    assert mixed[1, 0, 0, 0].item() == pytest.approx(fraction * 1 + (1 - fraction) * 0)

    torch.manual_seed(0)
    half = batch_mix(AugmentSettings(mixup=0.8, cutmix=1.0, mix_probability=0.5), 3)
    assert half is not None
    mixed_count = sum(half(images, labels)[1].ndim == 2 for _ in range(200))
    assert 70 <= mixed_count <= 130


def test_workers_end_with_an_error() -> None:
    class Broken(EvalTransform):
        def __call__(self, picture: Picture) -> Tensor:
            raise RuntimeError(f"a mistake of ours with {picture.name}")

    splits = load_splits(digits())
    images = AugmentedImages(splits.train, [Broken(8)], seed=0)
    with (
        pytest.raises(RuntimeError, match="a mistake of ours"),
        batches(images, EvalSampler(100, 10), workers=2) as stream,
    ):
        next(stream)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("train", "other"), [("Train", "Valid"), ("training", "testing"), ("train", "validation")])
def test_usual_spellings_of_the_splits(small_folder: Path, train: str, other: str) -> None:
    (small_folder / "train").rename(small_folder / "renamed")  # where case does not matter, it is the same folder
    (small_folder / "renamed").rename(small_folder / train)
    (small_folder / "test").rename(small_folder / other)
    splits = load_splits(DataSettings(root=small_folder, val_fraction=0.0))
    assert (len(splits.train), len(splits.test), splits.classes) == (60, 15, ("0", "1", "2"))
    (small_folder / "Training").mkdir()
    (small_folder / "TRAIN").mkdir()
    with pytest.raises(DataError, match=r"has both .*: keep one"):
        load_splits(DataSettings(root=small_folder))


def test_a_link_that_leads_back_is_followed_once(small_folder: Path) -> None:
    (small_folder / "train" / "0" / "loop").symlink_to(small_folder / "train" / "0")
    (small_folder / "train" / "1" / "up").symlink_to(small_folder / "train" / "1" / "..")
    splits = load_splits(DataSettings(root=small_folder, val_fraction=0.0))
    assert np.bincount(splits.train.targets).tolist() == [20, 20, 20]


def test_class_names_must_be_text(small_folder: Path) -> None:
    (small_folder / "train" / "0").rename(small_folder / "train" / os.fsdecode(b"caf\xe9"))
    with pytest.raises(DataError, match="not readable text"):
        load_splits(DataSettings(root=small_folder))


def test_fingerprints_know_the_images(small_folder: Path) -> None:
    def fingerprints() -> dict[str, str]:
        return load_splits(DataSettings(root=small_folder)).fingerprints()

    before = fingerprints()
    assert before.keys() == {"train", "val", "test"}
    assert fingerprints() == before
    next((small_folder / "test" / "1").iterdir()).unlink()
    after = fingerprints()
    assert (after["train"], after["val"]) == (before["train"], before["val"])
    assert after["test"] != before["test"]
    assert load_splits(digits()).fingerprints() == load_splits(digits()).fingerprints()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's accounts of memory")
def test_memory_stays_flat_and_is_not_multiplied_by_workers() -> None:
    """Over epochs, and with workers that share 192 MB of images."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 256, 256, 3), np.uint8)
    source = ArraySource(pixels, np.arange(1000) % 10, channels=3)
    epochs = 6
    images = AugmentedImages(source, [TrainTransform(AugmentSettings(), 32, (0.5,) * 3)] * epochs, seed=0)
    sampler = TrainSampler(1000, 100, epochs, seed=0)
    private: list[list[int]] = []
    with batches(images, sampler, workers=2) as stream:
        for step, _ in enumerate(stream):
            if step in (15, 45):
                private.append([private_bytes(child.pid) for child in multiprocessing.active_children()])
    assert len(private[0]) == len(private[1]) == 2
    assert max(private[0]) < 100e6
    assert max(private[1]) < max(private[0]) + 16e6


def private_bytes(process: int | None) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))
