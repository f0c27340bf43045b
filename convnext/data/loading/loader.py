"""Batches as pure functions of the settings: which images, in which order, and with which random changes.

A batch's images and augmentation depend on (seed, epoch, index) and which repetition it is alone, so they are the same
for any number of workers, and after any interruption.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from convnext.config import RunSettings
from convnext.data.images import UnreadableImageError
from convnext.data.loading.shared_memory import Slot, Slots
from convnext.data.loading.workers import reading
from convnext.data.resizing import sizes_by_epoch
from convnext.data.sources import ImageSource
from convnext.data.transforms import TrainTransform, Transform
from convnext.errors import DataError, SettingsError, UserError

# Pixels, target and index; or why there are none; or what must end the reading, which would come out of a worker as
# many lines if it were raised there.
Sample = tuple[Tensor, int, int] | str | UserError

_GROUPS_TOGETHER = 8  # half of what `shard_files` keeps at once
_MOST_WORKERS = 1024
_AHEAD = 4  # batches that a worker makes before they are asked for
Key = tuple[int, int, int]  # epoch, index, and which of the image's views in the epoch


class Batch(NamedTuple):
    """``n`` images, their labels, and what could not be read.

    Attributes:
        images: ``(n, C, H, W)`` uint8, in channels-last memory format.
        targets: ``(n,)`` int64.
        indices: ``(n,)`` int64, of the images in their source.
        unreadable: a line for each image left out.
        mixing: what the mixing of `convnext.data.batch_transforms` takes besides, where the loader draws that.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    unreadable: list[str]
    mixing: tuple[Tensor, ...] = ()


def seed_for(*numbers: int) -> int:
    """A 63-bit seed that depends on all the numbers and on their order."""
    digest = blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class AugmentedImages(Dataset[Sample]):
    """Transformed images by (epoch, index, repetition); an unreadable one is the line that says so.

    Args:
        source: the images.
        transforms: one an epoch.
        seed: of the random changes.
        alternate: whether each image is flipped in every other epoch.
    """

    def __init__(
        self, source: ImageSource, transforms: Sequence[Transform], seed: int, alternate: bool = False
    ) -> None:
        self.source = source
        self.transforms = transforms
        self.seed, self.alternate = seed, alternate
        # Shared with the workers, so that one that dies leaves word of what it was reading.
        self._reading = torch.full((_MOST_WORKERS,), -1).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def largest(self) -> int:
        """Bytes of the largest image that comes out."""
        return self.source.channels * max(transform.image_size for transform in self.transforms) ** 2

    def being_read(self) -> list[str]:
        """Labels of the images that the workers have begun to read and not finished."""
        return [self.source.image_name(index) for index in self._reading[self._reading >= 0].tolist()]

    def __getitem__(self, key: Key) -> Sample:
        worker = get_worker_info()
        if worker is None:
            return self._read(key)
        self._reading[worker.id] = key[1]
        try:
            return self._read(key)
        finally:
            self._reading[worker.id] = -1

    def _read(self, key: Key) -> Sample:
        epoch, index, repetition = key
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(seed_for(self.seed, *key))
        try:
            pixels = self.transforms[epoch](self.source.picture(index))
            if self.alternate and (seed_for(self.seed, index, repetition) + epoch) % 2:
                pixels = pixels.flip(-1)
            return pixels, int(self.source.targets[index]), index
        except UnreadableImageError as error:
            return str(error)
        except UserError as error:
            return error
        finally:
            generator.set_state(state)


class Collated(NamedTuple):
    """What comes of a batch's samples: its images, or where they are; targets; indices; lines of what is unreadable."""

    images: Tensor | Slot
    targets: list[int]
    indices: list[int]
    unreadable: list[str]


class Collate:
    """Stacks the readable samples and keeps the lines of the others.

    Args:
        slots: where a worker puts its batches; None for memory that is new each time.
    """

    def __init__(self, slots: Slots | None = None) -> None:
        self.slots = slots

    def __call__(self, samples: list[Sample]) -> Collated | UserError:
        """The batch, or what must end the reading."""
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
        read = [sample for sample in samples if isinstance(sample, tuple)]
        unreadable = [sample for sample in samples if isinstance(sample, str)]
        # Stacked in HWC order, in which most images come: their bytes are copied as they are.
        images = [image.permute(1, 2, 0) for image, _, _ in read]
        targets, indices = [target for _, target, _ in read], [index for _, _, index in read]
        return Collated(self._stack(images), targets, indices, unreadable)

    def _stack(self, images: list[Tensor]) -> Tensor | Slot:
        if not images:
            return torch.empty(0, 0, 0, 0, dtype=torch.uint8)
        if self.slots is not None:
            return self.slots.stack(images)
        # torch's own function puts a worker's batch where the main process reads it, without a second copy.
        stacked: Tensor = default_collate(images)
        return stacked

    def batch(self, collated: Collated) -> Batch:
        """The batch in the main process."""
        images, targets, indices, unreadable = collated
        if isinstance(images, Slot):
            assert self.slots is not None
            images = self.slots.batch(images)
        labels, numbers = (torch.tensor(values, dtype=torch.int64) for values in (targets, indices))
        return Batch(images.permute(0, 3, 1, 2), labels, numbers, unreadable)


class TrainSampler(Sampler[list[Key]]):
    """The batches of steps ``start_step`` to the end of training; each epoch is a new permutation, or as many images of
    every class.

    Args:
        length: images of the training set.
        batch_size: images of one step, over all processes; the last, incomplete batch of an epoch is left out.
        epochs: passes.
        seed: the run's.
        start_step: first step, counted over all epochs from 0.
        rank: this process's number; it takes every ``world_size``-th image of the batch.
        world_size: number of processes.
        repeats: views of an image in a batch (repeated augmentation, Hoffer et al. 2020); an epoch then shows that
            many times fewer images in as many steps.
        groups: numbers of the files that images lie in together, or None; see `ImageSource.groups`.
        balanced: ``(length,)`` class indices, to draw each class equally often: images of a rare class come several
            times, in different views, and of a frequent one others each epoch. None for each image once.

    Attributes:
        most: images of this process's fraction of a batch.

    Raises:
        SettingsError: a batch larger than the training set.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        epochs: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
        groups: NDArray[np.int64] | None = None,
        balanced: NDArray[np.int64] | None = None,
    ) -> None:
        if batch_size > length:
            raise SettingsError(
                f"batch_size {batch_size} is more than the {length} training images: lower --batch-size"
            )
        self.length, self.batch_size, self.epochs, self.seed = length, batch_size, epochs, seed
        self.start_step, self.rank, self.world_size = start_step, rank, world_size
        self.repeats, self.groups, self.balanced = repeats, groups, balanced
        self.steps_per_epoch = length // batch_size
        self.most = -(-batch_size // world_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.start_step

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The epoch's images in order, and how often each was drawn before; whole groups come one after the other, a
        few of them shuffled together."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, epoch))
        if self.balanced is None:
            order = torch.randperm(self.length, generator=generator)
            before = torch.zeros_like(order)
        else:
            count = -(-self.steps_per_epoch * self.batch_size // self.repeats)
            order, before = _each_class_equally(torch.tensor(self.balanced), count, generator)
        if self.groups is None:
            return order, before
        groups = torch.from_numpy(self.groups)
        rank = torch.randperm(int(groups.max()) + 1, generator=generator)
        by_group = torch.argsort(rank[groups[order]] // _GROUPS_TOGETHER, stable=True)
        return order[by_group], before[by_group]

    def __iter__(self) -> Iterator[list[Key]]:
        first_epoch, first_step = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            most = -(-self.length // self.repeats)
            order, before = (drawn[:most].repeat_interleave(self.repeats) for drawn in self._order(epoch))
            for step in range(first_step if epoch == first_epoch else 0, self.steps_per_epoch):
                positions = range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)
                own = slice(positions.start, positions.stop, positions.step)
                drawn = zip(order[own].tolist(), before[own].tolist(), positions, strict=True)
                yield [
                    (epoch, index, times * self.repeats + position % self.repeats) for index, times, position in drawn
                ]


def _each_class_equally(targets: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` images, and how often each was drawn before: every class once, in random order, again and again; of a
    class all its images in random order, again and again."""
    sizes = torch.bincount(targets)
    sizes = sizes[sizes > 0]
    rounds = torch.arange(-(-count // len(sizes)))
    draws = []
    for images in torch.split(torch.argsort(targets, stable=True), sizes.tolist()):
        shuffled = torch.rand(-(-len(rounds) // len(images)), len(images), generator=generator).argsort(1)
        draws.append(images[shuffled.flatten()[: len(rounds)]])
    classes = torch.rand(len(rounds), len(sizes), generator=generator).argsort(1)
    order, before = torch.stack(draws, 1).gather(1, classes), (rounds[:, None] // sizes).gather(1, classes)
    return order.flatten()[:count], before.flatten()[:count]


def training_images(settings: RunSettings, source: ImageSource, mean: Sequence[float]) -> AugmentedImages:
    """The images of a run, each epoch at its size; ``mean`` is the colour of erased rectangles, from 0 to 1."""
    sizes = sizes_by_epoch(settings.data, settings.epochs)
    by_size = {size: TrainTransform(settings.augment, size, mean) for size in set(sizes)}
    alternate = settings.augment.flip == "alternate"
    return AugmentedImages(source, [by_size[size] for size in sizes], settings.seed, alternate)


def training_sampler(settings: RunSettings, source: ImageSource, rank: int, world_size: int) -> TrainSampler:
    """The batches of a run, of which this process takes its fraction.

    Raises:
        SettingsError: a batch larger than the training set.
    """
    drawn, there = settings.drawn_batch_size, len(source)
    if settings.batch_size <= there < drawn:
        raise SettingsError(
            f"proxy_keep {settings.proxy_keep:g} of a batch: for {settings.batch_size} images {drawn} are drawn, and "
            f"there are {there} training images: lower --batch-size or raise --proxy-keep"
        )
    return TrainSampler(
        len(source),
        settings.drawn_batch_size,
        settings.epochs,
        settings.seed,
        rank=rank,
        world_size=world_size,
        repeats=settings.augment.repeats,
        groups=source.groups,
        balanced=source.targets if settings.data.sampler == "balanced" else None,
    )


class EvalSampler(Sampler[list[Key]]):
    """Each image once, in order; a process takes every ``world_size``-th, from ``rank`` on.

    Attributes:
        most: images of this process's largest batch.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        self.batch_size = batch_size
        self.most = min(batch_size, len(self.indices))

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index, 0) for index in self.indices[start : start + self.batch_size]]


@contextmanager
def batches(
    dataset: AugmentedImages, sampler: TrainSampler | EvalSampler, workers: int | None, pinned: bool = False
) -> Iterator[Iterator[Batch]]:
    """The sampler's batches; ``workers`` None chooses by the machine and the data (see `default_workers`).

    Batches that are ``pinned`` go to a CUDA device while it computes. Of others the images may be overwritten once the
    next batch is asked for.

    Raises:
        DataError: a worker died; the message names the image that it was reading.
    """
    workers = default_workers(dataset.source, pinned) if workers is None else workers
    # The loader lets go of a batch only when it has copied it to pinned memory.
    slots = Slots(workers, _AHEAD, max(1, sampler.most * dataset.largest)) if workers and not pinned else None
    collate = Collate(slots)
    loader: DataLoader[Collated | UserError] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the keys are tuples
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pinned,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=ignore_stop_signals,
    )
    with reading(loader, dataset.being_read) as stream:
        yield map(collate.batch, stream)


def default_workers(source: ImageSource, idle: bool = False) -> int:
    """Workers for files: one a core, at most 8, shared by this machine's training processes; none for images in memory
    beside a CPU that is busy computing, where it is not ``idle``."""
    if source.in_memory and not idle:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 8))


def ignore_stop_signals(_: int) -> None:
    """Leave stopping to the main process; for a worker's start."""
    import signal

    # Ctrl-C and cluster managers signal every process; the main one finishes its step, saves, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def raise_if_strict(unreadable: list[str], strict: bool) -> None:
    """Stop at unreadable images where the settings say so.

    Raises:
        DataError: ``strict``, and there are some.
    """
    if strict and unreadable:
        raise DataError(f"{unreadable[0]}; repair or remove it, or train without --data.strict to leave it out")
