"""Training images that lie decoded on the device, where whole batches of them are augmented.

Its batches are those of `convnext.data.loading.loader`, with the same images in the same order; the random changes are
others, which a device can draw, and as there a function of (seed, epoch, image, repetition) alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor

from convnext.config import RunSettings
from convnext.data.batch_augment import BatchAugment, MixingDraws
from convnext.data.batch_transforms import is_mixed
from convnext.data.images import Picture, UnreadableImageError
from convnext.data.loading.loader import (
    AugmentedImages,
    Batch,
    EvalSampler,
    Key,
    TrainSampler,
    batches,
    training_sampler,
)
from convnext.data.progress import tracked
from convnext.data.resizing import sizes_by_epoch
from convnext.data.sources import ImageSource
from convnext.data.splits import Splits
from convnext.data.transforms import EvalTransform, Transform
from convnext.devices import send
from convnext.errors import DataError

_READ = 256  # images that are read at a time
_TOGETHER = 16  # batches whose views are drawn at once, since a GPU takes as long for one of them


def stored_sizes(settings: RunSettings, source: ImageSource, first_epoch: int = 0) -> list[tuple[int, int]]:
    """Heights and widths at which images are stored: for random areas their own, which must be one, and else the sizes
    of the epochs from ``first_epoch`` on.

    Raises:
        DataError: no image can be read.
    """
    if settings.augment.crop != "resized":
        return [(size, size) for size in sorted(set(_sizes(settings)[first_epoch:]))]
    for index in range(len(source)):
        try:
            width, height = source.picture(index).size
        except UnreadableImageError as error:
            problem = str(error)
            continue
        return [(height, width)]
    raise DataError(f"none of the {len(source):,} training images can be read; the last: {problem}")


def stored_bytes(settings: RunSettings, source: ImageSource) -> int:
    """Memory that the images take; DataError as of `stored_sizes`."""
    return sum(height * width for height, width in stored_sizes(settings, source)) * source.channels * len(source)


def _sizes(settings: RunSettings) -> list[int]:
    return sizes_by_epoch(settings.data, settings.epochs)


class ResidentImages:
    """The training images of a run, decoded, on the device.

    Args:
        settings: the run's.
        splits: whose training images are read once, at each size that the run needs.
        device: where they go.
        step: the first that is trained.
        progress: whether to show how far the reading is, on standard error.
        steps: of which the images are read, from that first one on; None for all. The pixels of others are undefined.

    Attributes:
        images_read: how many images were read, at each size.
        unreadable: by index, the lines of the images that cannot be read, which are left out of their batches.

    Raises:
        DataError: random areas are asked for of images of several sizes; or a process that reads died.
    """

    def __init__(
        self,
        settings: RunSettings,
        splits: Splits,
        device: torch.device,
        step: int = 0,
        progress: bool = True,
        steps: int | None = None,
    ) -> None:
        self.device, self.unreadable = device, dict[int, str]()
        self._sizes = _sizes(settings)
        source = splits.train
        first_epoch = step // (len(source) // settings.drawn_batch_size)
        self._chosen = np.arange(len(source))
        if steps is not None:
            sampler = training_sampler(settings, source, 0, 1)
            sampler.start_step = step
            self._chosen = np.unique([index for keys in islice(sampler, steps) for _, index, _ in keys])
        self._targets = torch.from_numpy(source.targets).to(device)
        self._pixels: dict[tuple[int, int], Tensor] = {}
        for stored in stored_sizes(settings, source, first_epoch):
            self._pixels[stored] = self._read(settings, source, stored, progress)
        self._augment = {
            size: BatchAugment(settings.augment, size, self._stored(size), splits.mean, settings.seed, device)
            for size in set(self._sizes[first_epoch:])
        }

        by_element = settings.augment.mix_by == "element" and is_mixed(settings.augment)
        self.images_read = len(self._chosen)
        self._mixing = MixingDraws(settings.augment, settings.seed, device) if by_element else None

    def _stored(self, size: int) -> tuple[int, int]:
        return (size, size) if (size, size) in self._pixels else next(iter(self._pixels))

    def _read(self, settings: RunSettings, source: ImageSource, stored: tuple[int, int], progress: bool) -> Tensor:
        """The pixels of all images ``(N, H, W, C)``, of what is unreadable undefined ones."""
        whole = settings.augment.crop == "resized"
        transform: Transform = _Whole(*stored) if whole else EvalTransform(stored[0], margin=1)  # as a `TrainTransform`
        pixels = torch.empty(len(source), *stored, source.channels, dtype=torch.uint8, device=self.device)
        chosen = torch.from_numpy(self._chosen)
        sampler = EvalSampler(len(chosen), _READ)
        images = AugmentedImages(source.subset(self._chosen), [transform], seed=0)
        with batches(images, sampler, settings.data.workers) as stream:
            for number, batch in enumerate(tracked(stream, len(sampler), "reading images", progress)):
                read = chosen[batch.indices]
                asked = chosen[_READ * number : _READ * (number + 1)].tolist()
                missing = sorted(set(asked) - set(read.tolist()))
                self.unreadable |= zip(missing, batch.unreadable, strict=True)
                if len(read):
                    pixels[read.to(self.device)] = batch.images.permute(0, 2, 3, 1).to(self.device)
        return pixels

    def batches(self, sampler: TrainSampler) -> Iterator[Batch]:
        """The sampler's batches, on the device."""
        # A process has no images of a batch that is smaller than the number of processes.
        for size, steps in groupby(sampler, lambda keys: self._sizes[keys[0][0] if keys else -1]):
            while together := list(islice(steps, _TOGETHER)):
                yield from self._batches(size, together)

    def _batches(self, size: int, steps: list[list[Key]]) -> Iterator[Batch]:
        readable = [[key for key in keys if key[1] not in self.unreadable] for keys in steps]
        named = torch.tensor([key for step in readable for key in step], dtype=torch.int64).view(-1, 3)
        keys = send(named, self.device)
        augment, pixels = self._augment[size], self._pixels[self._stored(size)]
        counts = [len(step) for step in readable]
        changes = augment.policy.draw(named, counts) if augment.policy else [[]] * len(counts)
        views = torch.split(augment.draw(keys), counts)
        mixing = torch.split(self._mixing(keys), counts) if self._mixing else [None] * len(counts)
        images_of = torch.split(keys[:, 1], counts)
        for step, indices, drawn, changed, mixed in zip(steps, images_of, views, changes, mixing, strict=True):
            lines = [self.unreadable[index] for _, index, _ in step if index in self.unreadable]
            images = augment(pixels, indices, drawn, changed).permute(0, 3, 1, 2)
            yield Batch(images, self._targets[indices], indices, lines, () if mixed is None else (mixed,))


@contextmanager
def training_batches(
    images: AugmentedImages | ResidentImages, sampler: TrainSampler, workers: int | None, device: torch.device
) -> Iterator[Iterator[Batch]]:
    """The batches of a run, from ``workers`` where the images are not on the device yet; see `batches`."""
    if isinstance(images, ResidentImages):
        yield images.batches(sampler)
        return
    with batches(images, sampler, workers, pinned=device.type == "cuda") as stream:
        yield stream


class _Whole:
    """From a picture to all of its pixels ``(C, height, width)`` uint8; DataError where it has another size."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.image_size = max(height, width)

    def __call__(self, picture: Picture) -> Tensor:
        width, height = picture.size
        if (height, width) != (self.height, self.width):
            raise DataError(
                f"{picture.name} has {width} x {height} pixels and others {self.width} x {self.height}: for "
                f"random areas (augment.crop resized) of images of several sizes use --data.augment-on workers"
            )
        return torch.from_numpy(picture.resized((0, 0, width, height), width, height)).permute(2, 0, 1)
