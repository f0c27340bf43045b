"""Images decoded once, in one file that all workers and processes share; see `convnext.data.cache.file` for the file.

It is made in the cache folder as ``.<name>.bin.<process>.tmp``, while ``.<name>.bin.lock`` keeps other processes from
making the same one. What a process that was killed left of it is removed by the next that makes a file there.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal
from torch import Tensor
from torch.utils.data import DataLoader

from convnext.data.cache.file import CacheError, CacheFile, Chunk, write
from convnext.data.images import UnreadableImageError
from convnext.data.loading.loader import AugmentedImages, EvalSampler, Key, Sample, default_workers, ignore_stop_signals
from convnext.data.loading.workers import reading
from convnext.data.progress import tracked
from convnext.data.sources import ImageSource, digest
from convnext.errors import UserError
from convnext.output import say
from convnext.storage.downloads import cache_folder
from convnext.storage.locks import alone, remove_idle

__all__ = ["CacheError", "CachedSource", "open_cache"]

_CHUNK = 8  # images that a worker decodes at a time
_SAMPLE = 100  # images whose sizes make the estimate
_NAME = "\0"  # stands for the image's name in a reason


class CachedSource(ImageSource):
    """The images of another source, decoded, in its order, in a file that all processes share; targets and fingerprint
    stay. What is pickled is the file's path and the other source, not the pixels."""

    in_memory = True

    def __init__(self, source: ImageSource, file: CacheFile) -> None:
        self.targets, self.channels, self.groups = source.targets, source.channels, source.groups
        self.one_size = source.one_size
        self._source, self._file, self._indices = source, file, np.arange(len(source))

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def raw(self, index: int) -> NDArray[np.uint8]:
        """The pixels: a view of the file, which stays as it is whatever is done to them.

        Raises:
            UnreadableImageError: it could not be read when the cache was made.
        """
        cached_index = int(self._indices[index])
        if (reason := self._file.reasons.get(cached_index)) is not None:
            raise UnreadableImageError(reason.replace(_NAME, self.image_name(index)))
        return self._file.pixels(cached_index)

    def image_name(self, index: int) -> str:
        """As the other source calls it."""
        return self._source.image_name(int(self._indices[index]))

    def fingerprint(self) -> str:
        """The other source's."""
        return self._source.subset(self._indices).fingerprint()


def open_cache(source: ImageSource, image_size: int, workers: int | None = None, progress: bool = True) -> CachedSource:
    """The images of ``source`` from a file of decoded ones, made first where there is none that is up to date.

    Several processes may ask at once: one makes the file, the others wait for it. It stays in the cache folder, and the
    memory that the system has to spare holds what was read of it.

    Args:
        source: the images; the file has them in this order.
        image_size: shorter side in pixels to which larger images are shrunk (bicubic, antialiased).
        workers: processes that decode; None chooses.
        progress: whether to show a bar, on a terminal, and lines, on standard error.

    Raises:
        CacheError: no room, or a folder that cannot be written; nothing is left there.
        DataError: a process that decodes died; nothing is left either.
    """

    def note(line: str) -> None:
        if progress:
            say(line)

    name, key = _keys(source, image_size)
    folder = cache_folder() / "images"
    path = folder / f"{name}.bin"
    made = False
    try:
        while (file := CacheFile.open(path, key)) is None:
            folder.mkdir(parents=True, exist_ok=True)
            with alone(_lock_of(path), lambda: note("waiting for another process, which caches the same images")):
                if CacheFile.open(path, key) is None:
                    _make(path, key, source, image_size, workers, progress)
                    made = True
    except OSError as error:
        raise _disk_error(folder, error, image_size) from error
    if made:
        unreadable = f", {len(file.reasons):,} of them unreadable" if file.reasons else ""
        note(
            f"cached {file.header.images:,} images{unreadable}, with a shorter side of at most {image_size} px: "
            f"{decimal(file.header.size)} in {file.path}"
        )
    return CachedSource(source, file)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _keys(source: ImageSource, image_size: int) -> tuple[str, str]:
    """Digests of which images these are, and of that together with the state of their files."""
    read_as = [source.max_pixels, source.max_value]
    identity = [source.location(), source.fingerprint(), source.channels, image_size, *read_as]
    name = digest(json.dumps(identity).encode())
    return name, digest(b"\0".join((name.encode(), *source.states())))


def _make(path: Path, key: str, source: ImageSource, image_size: int, workers: int | None, progress: bool) -> None:
    _sweep(path)
    needed, free = _estimate(source, image_size), shutil.disk_usage(path.parent).free
    if needed > free:
        problem = f"the images take about {decimal(needed)} and there is room for {decimal(free)}"
        raise _no_room(path.parent, problem, image_size)
    with _decoded(source, image_size, default_workers(source) if workers is None else workers) as chunks:
        shown = tracked(chunks, -(-len(source) // _CHUNK), "caching images", progress)
        write(path, key, source.channels, len(source), shown)


def _sweep(path: Path) -> None:
    """Remove what processes that were killed left of this file, whose lock is held, and of others."""
    for unfinished in path.parent.glob(".*.bin.*.tmp"):
        other = path.with_name(unfinished.name.split(".")[1] + path.suffix)
        if other == path:
            unfinished.unlink()
        else:
            remove_idle(unfinished, _lock_of(other))


def _disk_error(folder: Path, error: OSError, image_size: int) -> CacheError:
    problem = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _no_room(folder, problem.lower(), image_size)
    return CacheError(
        f"cannot cache images in {folder}: {problem}; set CONVNEXT_CACHE to a folder that can be written, or use "
        f"--data.cache none"
    )


def _no_room(folder: Path, problem: str, image_size: int) -> CacheError:
    return CacheError(
        f"cannot cache images in {folder}: {problem}; lower --data.cache-image-size (now {image_size}), set "
        f"CONVNEXT_CACHE to a folder on another disk, or use --data.cache none"
    )


def _estimate(source: ImageSource, image_size: int) -> int:
    """Bytes of all pixels, by the sizes of some images."""
    count = min(_SAMPLE, len(source))
    # Spread evenly, but where images lie together in files that may have to be fetched, the first ones.
    last = len(source) - 1 if source.groups is None else count - 1
    pixels = 0
    for index in np.linspace(0, last, count).astype(int).tolist():
        with suppress(UnreadableImageError):
            width, height = _cached_size(*source.picture(index).size, image_size)
            pixels += width * height
    return pixels * source.channels * len(source) // count


def _cached_size(width: int, height: int, image_size: int) -> tuple[int, int]:
    """Width and height of an image in the cache."""
    shorter = min(width, height)
    if shorter <= image_size:
        return width, height
    return round(width * image_size / shorter), round(height * image_size / shorter)


class _Decoded(AugmentedImages):
    """Images as ``(H, W, C)`` uint8 with a shorter side of at most ``image_size``, or why they cannot be read, without
    their names."""

    def __init__(self, source: ImageSource, image_size: int) -> None:
        super().__init__(source, [], seed=0)
        self.image_size = image_size

    def _read(self, key: Key) -> Sample:
        _, index, _ = key
        try:
            picture = self.source.picture(index)
            width, height = picture.size
            pixels = picture.resized((0, 0, width, height), *_cached_size(width, height, self.image_size))
            return torch.from_numpy(pixels), int(self.source.targets[index]), index
        except UnreadableImageError as error:
            return str(error).replace(self.source.image_name(index), _NAME)
        except UserError as error:
            return error


def _joined(samples: list[Sample]) -> tuple[Tensor, list[tuple[int, int] | str]] | UserError:
    """The fields of a `Chunk`, or what must end the reading."""
    pixels, images = [torch.empty(0, dtype=torch.uint8)], list[tuple[int, int] | str]()
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        if isinstance(sample, str):
            images.append(sample)
        else:
            pixels.append(sample[0].flatten())
            images.append((sample[0].shape[0], sample[0].shape[1]))
    return torch.cat(pixels), images


@contextmanager
def _decoded(source: ImageSource, image_size: int, workers: int) -> Iterator[Iterator[Chunk]]:
    """All images in order, decoded by ``workers`` processes."""
    dataset = _Decoded(source, image_size)
    loader: DataLoader[tuple[Tensor, list[tuple[int, int] | str]] | UserError] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the keys are tuples
        batch_sampler=EvalSampler(len(source), _CHUNK),
        num_workers=workers,
        collate_fn=_joined,
        worker_init_fn=ignore_stop_signals,
    )
    with reading(loader, dataset.being_read) as joined:
        yield (Chunk(pixels.numpy(), images) for pixels, images in joined)
