"""What one reading keeps of an image: whether it can be read, its size and mode, a digest, and a small signature.

Two images are near copies where their signatures are `alike` and, looked at again, they are `same_in_detail`. The
bounds were set on photographs of 32 to 500 px: resizing by 2, JPEG of quality 30, and brightness or contrast changed by
a fifth stay within them; of 432 near copies found in CIFAR-10, 3 were not the same picture when looked at. Pictures of
things alike on an empty ground (clothes for sale, digits scaled up) can pass for copies.
"""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from convnext.data.images import UnreadableImageError
from convnext.data.loading.loader import default_workers, ignore_stop_signals
from convnext.data.progress import tracked
from convnext.data.sources import ImageSource
from convnext.errors import DataError, UserError

SIZE = 16  # of a signature
SMALLEST_SIZE = 32  # of the larger of two near copies: digits of 8 px look alike without being copies
LEAST_CORRELATION = 0.95
_LEAST_EDGE_CORRELATION = 0.8
_LEAST_CONTRAST = 4.0  # grey levels: what varies less looks alike too easily
_DETAIL_SIZE = 64
_DETAIL_NOISE = 4.0  # squared grey levels that compression may change in a pixel
_MOST_DIFFERENT = 0.7  # of two images' fine detail: about 1 where it is unrelated

READING = np.dtype(
    [
        ("readable", "?"),
        ("digest", "S16"),
        ("width", "u4"),
        ("height", "u4"),
        ("mode", "S20"),
        ("white", "f8"),  # this and the next two as in `convnext.data.images.Scale`, or zero
        ("largest", "f8"),
        ("clipped", "f4"),
        ("signature", "i1", (SIZE, SIZE)),
    ]
)
_Read = tuple[NDArray[np.void], str] | UserError


def read_all(
    sources: Sequence[ImageSource], workers: int | None, progress: bool
) -> tuple[NDArray[np.void], dict[int, str]]:
    """Read every image of the sources, numbered through, once: ``(N,)`` `READING`, and why an image cannot be read, by
    its number.

    Raises:
        DataError: a process that reads was killed.
        UserError: a source that cannot be read at all.
    """
    loader: DataLoader[_Read] = DataLoader(
        ConcatDataset([_Readings(source) for source in sources]),
        batch_size=32,
        num_workers=default_workers(sources[0]) if workers is None else workers,
        collate_fn=list,
        worker_init_fn=ignore_stop_signals,
    )
    readings = np.zeros(sum(map(len, sources)), READING)
    reasons: dict[int, str] = {}
    batches = iter(loader)
    try:
        items = chain.from_iterable(tracked(batches, len(loader), "reading images", progress))
        for index, item in enumerate(items):
            if isinstance(item, UserError):
                raise item
            readings[index], reason = item
            if reason:
                reasons[index] = reason
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError("a process that reads images was killed, for want of memory? Try fewer --workers") from error
    finally:
        # Workers ignore signals, so they must be told to end also where the traceback of an error keeps the iterator.
        if shut_down := getattr(batches, "_shutdown_workers", None):
            shut_down()
    return readings, reasons


class _Readings(Dataset[_Read]):
    """The images of a source as `READING`, each with the reason why it cannot be read; or what must end it all."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Read:
        reading = np.zeros((), READING)
        name = self.source.image_name(index)
        try:
            picture = self.source.picture(index)
            image = picture.decode()
        except UnreadableImageError as error:
            return reading, str(error)
        except MemoryError:
            return reading, f"{name}: unreadable image (too large for the memory)"
        except UserError as error:
            return error
        reading["readable"] = True
        size = np.array(image.size, "<u4").tobytes()
        reading["digest"] = blake2b(image.tobytes(), digest_size=16, salt=size).digest()
        reading["width"], reading["height"] = image.size
        reading["mode"] = picture.mode
        if picture.scale is not None:
            reading["white"], reading["largest"], reading["clipped"] = picture.scale
        reading["signature"] = signature(image)
        return reading, ""


def signature(image: Image.Image) -> NDArray[np.int8]:
    """``(SIZE, SIZE)``: the image shrunk, in grey, around 0 and up to 127; zeros where it is flat or tiny."""
    small = _shrunk(image, SIZE)
    centred = small - small.mean()
    if min(image.size) < SIZE or centred.std() < _LEAST_CONTRAST:
        return np.zeros((SIZE, SIZE), np.int8)
    scaled: NDArray[np.int8] = np.rint(centred * (127 / np.abs(centred).max())).astype(np.int8)
    return scaled


def _shrunk(image: Image.Image, size: int) -> NDArray[np.float32]:
    """``(size, size)`` means of the grey levels; the first of two steps bounds the memory, the second the rounding."""
    box = Image.Resampling.BOX
    return np.asarray(image.convert("L").resize((4 * size, 4 * size), box).convert("F").resize((size, size), box))


def unit_vectors(signatures: NDArray[np.int8]) -> NDArray[np.float32]:
    """``(N, SIZE, SIZE)`` signatures as ``(N, SIZE²)`` vectors of length 1, whose product is their correlation."""
    vectors = signatures.reshape(len(signatures), -1).astype(np.float32)
    vectors -= vectors.mean(1, keepdims=True)
    return _normed(vectors)


def _normed(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors / lengths


def alike(one: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.float32]:
    """How alike ``(N, SIZE, SIZE)`` signatures are, pair by pair: up to 1 for copies, 0 where they may not be any."""
    correlation = (unit_vectors(one) * unit_vectors(other)).sum(1)
    edges = (_edges(one) * _edges(other)).sum(1)
    scores: NDArray[np.float32] = np.where(
        (correlation >= LEAST_CORRELATION) & (edges >= _LEAST_EDGE_CORRELATION), edges, 0
    )
    return scores


def _edges(signatures: NDArray[np.int8]) -> NDArray[np.float32]:
    """Differences of neighbours, as vectors of length 1; their roots, or else a frame or a horizon would decide."""
    levels = signatures.astype(np.float32)
    steps = [np.diff(levels, axis=axis).reshape(len(levels), -1) for axis in (1, 2)]
    vectors = np.concatenate(steps, axis=1)
    vectors = np.sign(vectors) * np.sqrt(np.abs(vectors))
    return _normed(vectors)


def same_in_detail(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images with signatures that are alike have the same fine detail, as far as they have any."""
    size = min(_DETAIL_SIZE, *one.size, *other.size)
    levels = [_shrunk(image, size) for image in (one, other)]
    contrasts = [max(float(level.std()), 1.0) for level in levels]
    details = [_detail(level * (min(contrasts) / contrast)) for level, contrast in zip(levels, contrasts, strict=True)]
    energy = sum(float((detail**2).mean()) for detail in details) + 2 * _DETAIL_NOISE
    return float(((details[0] - details[1]) ** 2).mean()) <= _MOST_DIFFERENT * energy


def _detail(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(size, size)``: what the grey levels have beyond a signature."""
    coarse = Image.fromarray(levels).resize((SIZE, SIZE), Image.Resampling.BOX)
    detail: NDArray[np.float32] = levels - np.asarray(coarse.resize(levels.shape, Image.Resampling.BICUBIC))
    return detail
