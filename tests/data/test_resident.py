"""Training images on the device: the views of a batch are those of a plain loop over its images."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomErasing, RandomResizedCrop

from convnext.config import AugmentSettings, DataSettings, RunSettings
from convnext.data.batch_augment import BatchAugment, MixingDraws
from convnext.data.batch_transforms import batch_mix
from convnext.data.datasets.load import load_splits
from convnext.data.draws import philox
from convnext.data.interpolation import Pixels
from convnext.data.loading.loader import Batch, batches, training_images, training_sampler
from convnext.data.loading.resident import ResidentImages
from convnext.data.sources import ArraySource
from convnext.data.splits import Splits
from convnext.errors import DataError
from tests.support.waiting import Waits

CPU = torch.device("cpu")
COUNT = 40
Range = tuple[float, float]


def images(height: int, width: int, channels: int = 3) -> Splits:
    """Some of noise and smooth colour."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([5 * x, 7 * y, 3 * (x + y)], -1)[..., :channels]
    pixels = np.clip(smooth + generator.integers(-60, 60, (COUNT, height, width, channels)), 0, 255).astype(np.uint8)
    source = ArraySource(pixels, np.arange(COUNT) % 4, channels)
    return Splits(("a", "b", "c", "d"), source, None, source, mean=(0.5, 0.2, 0.7)[:channels], std=(0.2,) * channels)


def settings(**changes: object) -> RunSettings:
    changed: RunSettings = RunSettings(epochs=3, batch_size=12, seed=5, data=DataSettings(image_size=16)).replace(
        **changes
    )
    return changed


def resident(
    run: RunSettings, splits: Splits, step: int = 0, rank: int = 0, world_size: int = 1, device: torch.device = CPU
) -> list[Batch]:
    sampler = training_sampler(run, splits.train, rank, world_size)
    sampler.start_step = step
    return list(ResidentImages(run, splits, device, step, progress=False).batches(sampler))


def rectangle(
    words: list[list[int]], size: tuple[int, int], margin: int, fraction: Range, ratio: Range
) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of the first that is smaller than the image by ``margin``, as torchvision tries."""
    for first, second, top, left in words:
        u, v = ((word // 2**16 + 0.5) / 2**16 for word in (first, second))
        root = np.float32(np.sqrt(size[0] * size[1] * (fraction[0] + (fraction[1] - fraction[0]) * u)))
        shape = np.float32(np.exp(np.log(ratio[0]) / 2 + (np.log(ratio[1]) - np.log(ratio[0])) / 2 * v))
        height, width = round(float(root * shape)), round(float(root / shape))
        if 0 < height <= size[0] - margin and 0 < width <= size[1] - margin:
            return top * (size[0] + 1 - height) // 2**32, left * (size[1] + 1 - width) // 2**32, height, width
    return None


def view(run: RunSettings, splits: Splits, size: int, key: tuple[int, int, int]) -> Pixels:
    """What one image becomes."""
    augment = run.augment

    def words(purpose: int) -> list[list[int]]:
        drawn: list[list[int]] = philox(torch.tensor([[*key, purpose + i] for i in range(10)]), run.seed).tolist()
        return drawn

    picture, area = splits.train.picture(key[1]), words(256)
    if augment.crop == "resized":
        width, height = picture.size
        cropped = rectangle(area, (height, width), 0, augment.crop_scale, (3 / 4, 4 / 3))
        top, left, rows, columns = cropped or (0, 0, height, width)
        pixels = picture.resized((left, top, left + columns, top + rows), size, size)
    else:
        border = augment.crop_padding if augment.crop == "padding" else 0
        top, left = (word * (2 * border + 1) // 2**32 for word in area[0][:2])
        whole = np.pad(picture.center(size, margin=1), ((border, border), (border, border), (0, 0)), "reflect")
        pixels = whole[top : top + size, left : left + size]
    flip, erase, *_ = words(0)[0]
    if augment.flip == "alternate":
        of_image = int(philox(torch.tensor([0, *key[1:], 1024]), run.seed)[0])
        flipped = (of_image + key[0]) % 2 == 1
    else:
        flipped = flip < augment.flip * 2**32
    if flipped:
        pixels = pixels[:, ::-1]
    erased = rectangle(words(512), (size, size), 1, (0.02, 0.33), (0.3, 3.3))
    if erased is not None and erase < augment.random_erasing * 2**32:
        top, left, rows, columns = erased
        pixels = pixels.copy()
        pixels[top : top + rows, left : left + columns] = [round(255 * value) for value in splits.mean]
    return pixels


@pytest.mark.parametrize("crop", ["none", "padding", "resized"])
@pytest.mark.parametrize(("erasing", "flip"), [(0.0, 0.5), (0.5, "alternate")])
@pytest.mark.parametrize(("shape", "start"), [((16, 16, 3), None), ((20, 28, 3), 8), ((33, 18, 1), 12)])
def test_a_batch_is_what_a_loop_over_its_images_makes(
    crop: str, erasing: float, flip: float | str, shape: tuple[int, int, int], start: int | None
) -> None:
    """Every bit, at sizes that grow, of images that are larger, smaller and not square."""
    run = settings(
        augment={"crop": crop, "random_erasing": erasing, "flip": flip, "repeats": 2}, **{"data.start_size": start}
    )
    splits = images(*shape)
    sizes = set()
    for batch, keys in zip(resident(run, splits), training_sampler(run, splits.train, 0, 1), strict=True):
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.indices.tolist() == [index for _, index, _ in keys]
        assert batch.targets.tolist() == [index % 4 for _, index, _ in keys]
        sizes.add(size := batch.images.shape[-1])
        for pixels, key in zip(batch.images, keys, strict=True):
            assert np.array_equal(pixels.permute(1, 2, 0), view(run, splits, size, key)), key
    assert sizes == {None: {16}, 8: {8, 12, 16}, 12: {12, 14, 16}}[start]


@pytest.mark.parametrize("on_device", [True, False])
def test_alternating_flips_show_an_image_from_each_side_in_turn(on_device: bool) -> None:
    run = settings(epochs=4, batch_size=COUNT, augment={"crop": "none", "flip": "alternate"})
    splits = images(16, 16)
    if on_device:
        epochs = resident(run, splits)
    else:
        with batches(
            training_images(run, splits.train, splits.mean), training_sampler(run, splits.train, 0, 1), 0
        ) as read:
            epochs = [batch._replace(images=batch.images.clone()) for batch in read]
    flipped = torch.zeros(4, COUNT, dtype=torch.bool)
    for epoch, batch in enumerate(epochs):
        for pixels, index in zip(batch.images, batch.indices.tolist(), strict=True):
            image = torch.from_numpy(np.asarray(splits.train.raw(index))).permute(2, 0, 1)
            flipped[epoch, index] = not torch.equal(pixels, image)
            assert torch.equal(pixels.flip(-1) if flipped[epoch, index] else pixels, image)
    assert torch.equal(flipped[1:], ~flipped[:-1])
    assert 10 < flipped[0].sum() < 30


@pytest.mark.parametrize(("height", "width"), [(33, 18), (10, 30), (20, 20)])
def test_an_area_that_never_fits_is_the_middle_as_torchvision_takes_it(height: int, width: int) -> None:
    augment = BatchAugment(AugmentSettings(crop_scale=(1.0, 1.0)), 8, (height, width), (0.5,), 0, CPU)
    drawn = augment.draw(torch.tensor([[0, index, 0] for index in range(50)]))[:, :4]
    expected = RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    assert drawn.tolist() == [[*expected]] * 50


def test_views_are_distributed_as_those_of_the_workers() -> None:
    count, ratio = 2000, [3 / 4, 4 / 3]
    run = AugmentSettings(crop_scale=(0.2, 0.9), random_erasing=0.3, flip=0.4)
    augment = BatchAugment(run, 64, (60, 80), (0.5,), 1, CPU)
    views = augment.draw(torch.tensor([[1, index, 0] for index in range(count)]))
    torch.manual_seed(0)
    image = torch.empty((1, 60, 80), device="meta")
    areas = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 0.9], ratio) for _ in range(count)])
    for ours, theirs in zip(views[:, :4].T, areas.T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    assert views[:, 4].float().mean().item() == pytest.approx(0.4, abs=0.04)
    erased = views[views[:, 7] > 0, 5:]
    assert len(erased) / count == pytest.approx(0.3, abs=0.04)
    square = torch.empty((1, 64, 64))
    drawn = [RandomErasing.get_params(square, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in erased]
    for ours, theirs in zip(erased.T, torch.tensor(drawn).T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


def joined(made: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and indices of batches, one after the other."""
    return torch.cat([batch.images for batch in made]), torch.cat([batch.indices for batch in made])


def test_views_do_not_depend_on_the_batch_or_on_where_one_starts() -> None:
    run, splits = settings(augment={"policy": "randaugment"}, **{"data.start_size": 8}), images(16, 16)
    expected = resident(run, splits)
    assert len(expected) == 9
    for step in (0, 1, 4, 8):
        for batch, wanted in zip(resident(run, splits, step), expected[step:], strict=True):
            assert torch.equal(batch.images, wanted.images)
            assert torch.equal(batch.indices, wanted.indices)
    run = run.replace(epochs=1)
    pixels, indices = joined(resident(run.replace(batch_size=8), splits))
    for size in (40, 4, 1):
        others, numbers = joined(resident(run.replace(batch_size=size), splits))
        assert torch.equal(indices, numbers)
        assert torch.equal(pixels, others)
    assert not torch.equal(pixels, joined(resident(run.replace(batch_size=8, seed=6), splits))[0])


def test_the_images_of_a_few_steps_can_be_read_alone() -> None:
    run, splits = settings(augment={"policy": "randaugment"}), images(16, 16)
    stored = ResidentImages(run, splits, CPU, step=1, progress=False, steps=2)
    assert stored.images_read == 24
    sampler = training_sampler(run, splits.train, 0, 1)
    sampler.start_step = 1
    for batch, wanted in zip(islice(stored.batches(sampler), 2), resident(run, splits, 1), strict=False):
        assert torch.equal(batch.images, wanted.images)
        assert torch.equal(batch.indices, wanted.indices)


def test_processes_take_their_rows_of_each_batch() -> None:
    run, splits = settings(batch_size=5), images(16, 16)
    expected = resident(run, splits)
    for world_size in (2, 7):  # of 7 processes, two have none
        for rank in range(world_size):
            for own, whole in zip(resident(run, splits, 0, rank, world_size), expected, strict=True):
                assert torch.equal(own.indices, whole.indices[rank::world_size])
                assert torch.equal(own.images, whole.images[rank::world_size])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 1.0), (0.3, 0.0), (0.0, 2.0)])
def test_mixing_by_element_is_drawn_for_each_image(mixup: float, cutmix: float) -> None:
    """With the distributions of torchvision, for an image in any batch the same."""
    augment = AugmentSettings(mixup=mixup, cutmix=cutmix, mix_by="element", mix_probability=0.6)
    run, splits = settings(augment=augment, epochs=1), images(16, 16)
    one_by_one = torch.cat([batch.mixing[0] for batch in resident(run.replace(batch_size=1), splits)])
    assert torch.equal(torch.cat([batch.mixing[0] for batch in resident(run, splits)]), one_by_one[:36])
    draws = MixingDraws(augment, 3, CPU)(torch.tensor([[0, index, 0] for index in range(3000)]))
    kind, lam, *center = draws.unbind(1)
    assert kind.mean().item() == pytest.approx(0.5 if mixup and cutmix else float(not mixup), abs=0.04)
    assert (lam < 1).float().mean().item() == pytest.approx(0.6, abs=0.04)
    for number, alpha in enumerate((mixup, cutmix)):
        drawn = lam[(kind == number) & (lam < 1)]
        assert not len(drawn) or stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert all(stats.kstest(x, "uniform").pvalue > 1e-3 for x in center)
    mix = batch_mix(augment, 4)
    assert mix is not None
    batch = resident(run, splits)[0]
    mixed, fractions = mix(batch.images.float(), batch.targets, *batch.mixing)
    assert mixed.shape == batch.images.shape
    assert torch.allclose(fractions.sum(1), torch.ones(12))
    alone = batch.mixing[0][:, 1] == 1
    assert 0 < alone.sum() < 12
    assert torch.equal(mixed[alone], batch.images.float()[alone])
    assert resident(settings(augment={"mixup": 0.8}), splits)[0].mixing == ()


@pytest.mark.parametrize(("height", "width"), [(33, 18), (20, 20)])
def test_areas_resized_together_have_the_bits_of_those_resized_one_by_one(height: int, width: int) -> None:
    augment = AugmentSettings(crop_scale=(0.05, 1.0))
    stored = torch.from_numpy(np.stack([images(height, width).train.raw(index) for index in range(COUNT)]))
    made = [
        BatchAugment(augment, 16, (height, width), (0.5,) * 3, 0, CPU, together) for together in (True, False, None)
    ]
    views = made[0].draw(torch.tensor([[0, index, 0] for index in range(COUNT)]))
    together, one_by_one, chosen = (augment(stored, torch.arange(COUNT), views) for augment in made)
    assert torch.equal(together, one_by_one)
    assert torch.equal(together, chosen)


def test_policies_come_between_crops_and_erasing() -> None:
    """Each image is its view without a policy, changed by what is drawn for it, and then erased."""
    augment = AugmentSettings(policy="trivialaugment", color_jitter=0.3, random_erasing=0.7)
    run, splits = settings(augment=augment, epochs=1), images(20, 28)
    plain = run.replace(augment={"policy": "none", "color_jitter": 0.0, "random_erasing": 0.0})
    erased = run.replace(augment={"policy": "none", "color_jitter": 0.0})
    policy = BatchAugment(augment, 16, (20, 28), splits.mean, run.seed, CPU).policy
    assert policy is not None
    made = zip(*(resident(one, splits) for one in (run, plain, erased)), strict=True)
    for batch, before, after in made:
        keys = torch.tensor([[0, index, 0] for index in batch.indices.tolist()])
        changed = policy(before.images.permute(0, 2, 3, 1).clone(), policy.draw(keys, [len(keys)])[0])
        where = (before.images != after.images).any(1, keepdim=True)
        wanted = torch.where(where, after.images, changed.permute(0, 3, 1, 2))
        # A pixel that has the fill's colour by itself cannot be seen to be erased.
        assert ((batch.images != wanted).any(1).float().mean()) < 0.002
        assert where.any()


POLICIES = ({"policy": "trivialaugment"}, {"policy": "randaugment", "color_jitter": 0.4})


@pytest.mark.cuda
@pytest.mark.parametrize("policy", [{}, *POLICIES], ids=str)
@pytest.mark.parametrize("crop", ["none", "padding", "resized"])
@pytest.mark.parametrize("shape", [(16, 16, 3), (33, 18, 1)])
def test_the_gpu_makes_the_same_batches(crop: str, shape: tuple[int, int, int], policy: dict[str, object]) -> None:
    """Every bit of images, indices and what mixing draws, at sizes that grow."""
    augment = {"crop": crop, "random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "mix_by": "element"} | policy
    run, splits = settings(augment=augment, **{"data.start_size": 8}), images(*shape)
    made = zip(resident(run, splits), resident(run, splits, device=torch.device("cuda")), strict=True)
    for ours, theirs in made:
        assert theirs.images.device.type == theirs.targets.device.type == "cuda"
        names = ("images", "targets", "indices")
        pairs = [(getattr(ours, name), getattr(theirs, name)) for name in names] + [(ours.mixing[0], theirs.mixing[0])]
        assert all(torch.equal(cpu, gpu.cpu()) for cpu, gpu in pairs)


@pytest.mark.parametrize("policy", [{}, *POLICIES], ids=str)
@pytest.mark.parametrize("crop", ["none", "padding", "resized"])
def test_no_batch_waits_for_the_device(crop: str, policy: dict[str, object]) -> None:
    """Once the images are there: nothing of it is read, and what goes there is not waited for."""
    augment = {"crop": crop, "random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "mix_by": "element"} | policy
    run, splits = settings(augment=augment, **{"data.start_size": 8}), images(16, 16)
    device = torch.device("meta")  # which has no numbers
    stored = ResidentImages(run, splits, device, progress=False)
    mix = batch_mix(run.augment, 4)
    assert mix is not None
    with Waits():  # type: ignore[no-untyped-call]
        made = [
            mix(batch.images.float(), batch.targets, *batch.mixing)[0]
            for batch in stored.batches(training_sampler(run, splits.train, 0, 1))
        ]
    assert [x.shape[-1] for x in made[::3]] == [8, 12, 16]
    assert all(x.device == device for x in made)


def from_workers(run: RunSettings, splits: Splits) -> list[Batch]:
    images = training_images(run, splits.train, splits.mean)
    with batches(images, training_sampler(run, splits.train, 0, 1), workers=0) as stream:
        return list(stream)


def test_batches_have_the_images_of_the_workers_and_leave_out_the_same(small_folder: Path) -> None:
    """Each class equally often, several views, and unreadable images."""
    for path in sorted((small_folder / "train" / "1").iterdir())[:4]:
        path.write_bytes(b"no image")
    data = DataSettings(root=small_folder, image_size=8, sampler="balanced")
    augment = {"repeats": 2, "crop": "none", "flip": 0.0}
    run, splits = settings(data=data, batch_size=10, epochs=4, augment=augment), load_splits(data)
    made = resident(run, splits)
    assert sum(len(batch.unreadable) for batch in made) >= 4
    for batch, wanted in zip(made, from_workers(run, splits), strict=True):
        assert batch.unreadable == wanted.unreadable
        assert torch.equal(batch.indices, wanted.indices)
        assert torch.equal(batch.targets, wanted.targets)
        assert torch.equal(batch.images, wanted.images)


def test_random_areas_of_images_of_several_sizes_are_refused(small_folder: Path) -> None:
    odd = sorted((small_folder / "train" / "2").iterdir())[5]
    Image.open(odd).resize((9, 8)).save(odd)
    data = DataSettings(root=small_folder, image_size=8, val_fraction=0)
    with pytest.raises(DataError, match=rf"{odd} has 9 x 8 pixels and others 8 x 8: .* use --data\.augment-on workers"):
        resident(settings(data=data), load_splits(data))
