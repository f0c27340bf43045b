"""Images decoded once, in one file that all workers and processes share; see `cache_file` for the file."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from convnext.data.cache.file import CacheError, CacheFile, Chunk, Header, Store, amount, digest
from convnext.data.images import UnreadableImageError
from convnext.data.loading.loader import AugmentedImages, EvalSampler, Key, Sample, default_workers, ignore_stop_signals
from convnext.data.loading.workers import reading
from convnext.data.sources import FileSource, ImageSource
from convnext.errors import UserError

__all__ = ["CacheError", "CachedSource", "open_cache"]

_CHUNK = 8  # images that a worker decodes at a time
_SAMPLE = 100  # images whose sizes make the estimate
_LABEL = "\0"  # stands for the image's label in a reason


class CachedSource(ImageSource):
    """The images of another source, decoded, in a file that all processes share.

    What is pickled is the file's path and the other source, not the pixels.

    Args:
        source: the images as they were; their labels, targets and fingerprint stay.
        file: the decoded images.
        places: ``(N,)`` where they are in the file.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, source: ImageSource, file: CacheFile, places: NDArray[np.int64]) -> None:
        self.targets, self.channels, self.groups = source.targets, source.channels, source.groups
        self._source, self._file, self._places = source, file, places

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def raw(self, index: int) -> NDArray[np.uint8]:
        """The pixels: a view of the file, which stays as it is whatever is done to them.

        Raises:
            UnreadableImageError: it could not be read when the cache was made.
        """
        place = int(self._places[index])
        if (reason := self._file.reasons.get(place)) is not None:
            raise UnreadableImageError(reason.replace(_LABEL, self.image_name(index)))
        return self._file.pixels(place)

    def image_name(self, index: int) -> str:
        """As the other source calls it."""
        return self._source.image_name(index)

    def fingerprint(self) -> str:
        """The other source's."""
        return self._source.fingerprint()

    def subset(self, indices: NDArray[np.int64]) -> "CachedSource":
        """The images at ``indices``, in that order, in the same file."""
        return CachedSource(self._source.subset(indices), self._file, self._places[indices])

    def close(self) -> None:
        """Let a file in memory be removed once no other process uses it, as the end of this one does, too.

        The images can be read further on, but not by a worker that is started anew.
        """
        self._file.close()


def open_cache(
    source: ImageSource,
    where: Literal["ram", "disk"],
    side: int,
    workers: int | None = None,
    progress: bool = True,
) -> CachedSource:
    """The images of ``source`` from a file of decoded ones, made first where there is none that is up to date.

    Several processes may ask at once: one makes the file, the others wait for it.

    Args:
        source: the images; the file has them in this order.
        where: a file in memory, for as long as a process uses it, or one in the cache folder, which stays.
        side: shorter side in pixels to which larger images are shrunk (bicubic, antialiased).
        workers: processes that decode; None chooses.
        progress: whether to show a bar, on a terminal, and lines, on standard error.

    Raises:
        CacheError: no room, or a folder that cannot be written; nothing is left there.
        DataError: a process that decodes died; nothing is left either.
    """
    store = Store(where, *_keys(source, side), side)
    try:
        while (file := store.open()) is None:
            _make(store, source, default_workers(source) if workers is None else workers, progress)
    except OSError as error:
        raise store.trouble(error) from error
    return CachedSource(source, file, np.arange(len(source)))


def _keys(source: ImageSource, side: int) -> tuple[str, str]:
    """Digests of which images these are, and of that together with the state of their files."""
    root = os.path.realpath(source.root) if isinstance(source, FileSource) else ""
    name = digest(json.dumps([root, source.fingerprint(), source.channels, side]).encode())
    if not isinstance(source, FileSource):
        return name, name
    states = (_state(os.fsencode(root) + b"/" + path) for path in source.paths.tolist())
    return name, digest(b"\0".join((name.encode(), *states)))


def _state(path: bytes) -> bytes:
    """What changes with a file's contents, or with the right to read it."""
    try:
        status = os.stat(path)  # noqa: PTH116  # of a million files: a Path each would double the time
    except OSError as error:
        return b"%d" % (error.errno or 0)
    return b"%d %d %d" % (status.st_size, status.st_mtime_ns, status.st_mode)


def _make(store: Store, source: ImageSource, workers: int, progress: bool) -> None:
    """Make the file, unless another process does."""
    with store.unfinished(lambda: _say("waiting for another process, which caches the same images", progress)) as file:
        if file is None:
            return
        store.sweep()
        store.check_room(_estimate(source, store.side))
        with _decoded(source, store.side, workers, file) as chunks:
            header = store.write(file, _tracked(chunks, len(source), progress), source.channels, len(source))
        _say(_summary(header, store.path), progress)


def _estimate(source: ImageSource, side: int) -> int:
    """Bytes of all pixels, by the sizes of some images."""
    count = min(_SAMPLE, len(source))
    # Spread evenly, but where images lie together in files that may have to be fetched, the first ones.
    last = len(source) - 1 if source.groups is None else count - 1
    pixels = 0
    for place in np.linspace(0, last, count).astype(int).tolist():
        with suppress(UnreadableImageError):
            width, height = _kept(*source.picture(place).size, side)
            pixels += width * height
    return pixels * source.channels * len(source) // count


def _kept(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height at which an image is kept."""
    shorter = min(width, height)
    if shorter <= side:
        return width, height
    return round(width * side / shorter), round(height * side / shorter)


class _Decoded(AugmentedImages):
    """Images as ``(C, H, W)`` uint8 with a shorter side of at most ``side``, or why they cannot be read, without their
    labels."""

    def __init__(self, source: ImageSource, side: int) -> None:
        super().__init__(source, [], seed=0)
        self.side = side

    def _read(self, key: Key) -> Sample:
        _, index, _ = key
        try:
            picture = self.source.picture(index)
            width, height = picture.size
            pixels = picture.resized((0, 0, width, height), *_kept(width, height, self.side))
            return pixels, int(self.source.targets[index]), index
        except UnreadableImageError as error:
            return str(error).replace(self.source.image_name(index), _LABEL)
        except UserError as error:
            return error


def _joined(samples: list[Sample]) -> tuple[Tensor, list[tuple[int, int] | str]] | UserError:
    """The parts of a `Chunk`, or what must end the reading."""
    pixels, images = [torch.empty(0, dtype=torch.uint8)], list[tuple[int, int] | str]()
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        if isinstance(sample, str):
            images.append(sample)
        else:
            image = sample[0].permute(1, 2, 0)
            pixels.append(image.flatten())
            images.append((image.shape[0], image.shape[1]))
    return torch.cat(pixels), images


@contextmanager
def _decoded(source: ImageSource, side: int, workers: int, lock: int) -> Iterator[Iterator[Chunk]]:
    """All images in order, decoded by ``workers`` processes that do not keep the ``lock``, a descriptor."""
    dataset = _Decoded(source, side)
    loader: DataLoader[tuple[Tensor, list[tuple[int, int] | str]] | UserError] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the keys are tuples
        batch_sampler=EvalSampler(len(source), _CHUNK),
        num_workers=workers,
        collate_fn=_joined,
        worker_init_fn=partial(_start_worker, lock, os.fstat(lock)),
    )
    with reading(loader, dataset.being_read) as parts:
        yield (Chunk(pixels.numpy(), images) for pixels, images in parts)


def _start_worker(lock: int, status: os.stat_result, number: int) -> None:
    ignore_stop_signals(number)
    # A forked worker shares the lock, and would keep it for some seconds after its parent was killed.
    with suppress(OSError):
        if os.path.samestat(os.fstat(lock), status):
            os.close(lock)


def _tracked(chunks: Iterator[Chunk], images: int, progress: bool) -> Iterator[Chunk]:
    """The chunks, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    shown = progress and console.is_terminal
    yield from track(chunks, "caching images", -(-images // _CHUNK), console=console, transient=True, disable=not shown)


def _summary(header: Header, path: Path) -> str:
    unreadable = f", {header.unreadable:,} of them unreadable" if header.unreadable else ""
    return (
        f"cached {header.images:,} images{unreadable}, with a shorter side of at most {header.side} px: "
        f"{amount(header.size)} in {path}"
    )


def _say(line: str, progress: bool) -> None:
    if progress:
        print(line, file=sys.stderr, flush=True)
