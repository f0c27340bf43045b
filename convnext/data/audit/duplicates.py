"""Copies among many images: exact ones by their digests, near ones by their signatures.

Each copy is linked to one image that it repeats. Images come in order: those of later splits first (a training image
that repeats a test image is the copy), then the larger ones. In a split, an image is a copy only of one that is no
copy itself; so a film's frames, each like the next, do not all hang on the first.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext.data.audit.signatures import LEAST_CORRELATION, SMALLEST_SIZE, alike, unit_vectors

_BLOCK, _TILE = 2048, 4096  # rows and columns compared at once: 32 MB of products
_DIMENSIONS = 30
_TRIES = 3  # looks in detail that an image is worth
_PAIRS = 1 << 14  # compared at once


@dataclass(frozen=True)
class Copies:
    """What each of N images repeats, by number; -1 for nothing."""

    across: NDArray[np.int64]  # an image of a later split
    within: NDArray[np.int64]  # an image of the same split, where there is none of a later one

    def link(self, repeats: NDArray[np.int64], originals: NDArray[np.int64], splits: NDArray[np.int64]) -> None:
        """Note what these images repeat, pair by pair."""
        same = splits[repeats] == splits[originals]
        self.within[repeats[same]] = originals[same]
        self.across[repeats[~same]] = originals[~same]

    def linked(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the images repeat one."""
        return (self.across[indices] >= 0) | (self.within[indices] >= 0)


def find_copies(
    readings: NDArray[np.void],
    splits: NDArray[np.int64],
    confirm: Callable[[int, int], bool],
    tracked: Callable[[range], Iterable[int]],
) -> Copies:
    """Link every copy to what it repeats.

    All pairs are compared, exactly, in matrix products of `_DIMENSIONS` numbers an image.

    Args:
        readings: ``(N,)`` `convnext.data.audit.signatures.READING`.
        splits: ``(N,)`` index of each image's split: 0 for training, more for later ones.
        confirm: whether two images whose signatures are alike are copies indeed.
        tracked: shows how far the comparison is.
    """
    copies = Copies(np.full(len(readings), -1), np.full(len(readings), -1))
    areas = readings["width"].astype(np.int64) * readings["height"]
    order = np.lexsort((-areas, -splits))
    distinct = _link_exact(order[readings["readable"][order]], readings["digest"], splits, copies)
    repeats = np.flatnonzero(copies.within >= 0)
    search = _Search(readings, splits, confirm, copies)
    search.run(distinct[readings["signature"][distinct].any((1, 2))], tracked)
    # What the first of a digest nearly repeats, the others of it nearly repeat, too.
    repeats = repeats[copies.linked(copies.within[repeats])]
    originals = np.maximum(copies.across, copies.within)[copies.within[repeats]]
    copies.within[repeats] = -1
    copies.link(repeats, originals, splits)
    return copies


def _link_exact(
    order: NDArray[np.int64], digests: NDArray[np.bytes_], splits: NDArray[np.int64], copies: Copies
) -> NDArray[np.int64]:
    """Link images of the same digest; returns the first of each digest, in the order."""
    _, first, group = np.unique(digests[order], return_index=True, return_inverse=True)
    originals = order[first[group]]
    repeated = originals != order
    copies.link(order[repeated], originals[repeated], splits)
    return order[np.sort(first)]


class _Search:
    """Near copies among images without exact ones.

    Images are compared with those before them that no copy of the training set is: a set that consists of copies costs
    little. Signatures are projected on their principal directions, which shrinks distances alone, so that no pair is
    missed; the few pairs that are close there are compared in full.
    """

    def __init__(
        self,
        readings: NDArray[np.void],
        splits: NDArray[np.int64],
        confirm: Callable[[int, int], bool],
        copies: Copies,
    ) -> None:
        self.signatures, self.splits, self.confirm, self.copies = readings["signature"], splits, confirm, copies
        self.sizes = np.minimum(readings["width"], readings["height"])

    def run(self, order: NDArray[np.int64], tracked: Callable[[range], Iterable[int]]) -> None:
        """Link the near copies among these images."""
        if not (self.sizes[order] >= SMALLEST_SIZE).any():
            return
        basis = self._basis(order)
        columns = torch.empty(len(order), basis.shape[1] + 2)
        others = np.empty(len(order), np.int64)
        count = 0
        for start in tracked(range(0, len(order), _BLOCK)):
            block = order[start : start + _BLOCK]
            points = torch.from_numpy(unit_vectors(self.signatures[block])) @ basis
            halves, ones = (points**2).sum(1, keepdim=True) / 2, torch.ones(len(block), 1)
            end = count + len(block)
            columns[count:end], others[count:end] = torch.cat([points, ones, -halves], 1), block
            self._link(block, *self._alike(torch.cat([points, -halves, ones], 1), columns[:end], others[:end]))
            rest = np.flatnonzero((self.splits[block] > 0) | ~self.copies.linked(block))
            end = count + len(rest)
            columns[count:end], others[count:end] = columns[count + rest], block[rest]
            count = end

    def _basis(self, order: NDArray[np.int64]) -> Tensor:
        sample = order[np.linspace(0, len(order) - 1, min(len(order), 20_000)).astype(int)]
        vectors = torch.from_numpy(unit_vectors(self.signatures[sample]))
        directions: Tensor = torch.linalg.eigh(vectors.T @ vectors).eigenvectors
        return directions[:, -_DIMENSIONS:]

    def _alike(
        self, rows: Tensor, columns: Tensor, others: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Pairs (index in the block, index of the other image before it, how alike they are).

        The product of a row and a column is -d²/2 of two points at distance d. The rows are the last of the columns.
        """
        bound = LEAST_CORRELATION - 1 - 1e-4  # (x - y)² / 2 = 1 - x·y for vectors of length 1
        first = len(columns) - len(rows)
        results = []
        memory = torch.empty(len(rows) * _TILE)
        for start in range(0, len(columns), _TILE):
            tile = columns[start : start + _TILE]
            products = torch.mm(rows, tile.T, out=memory[: len(rows) * len(tile)].view(len(rows), len(tile)))
            near = torch.nonzero(products.amax(1) >= bound)[:, 0]  # most rows have nothing near in a tile
            pairs = torch.nonzero(products[near] >= bound)
            row, column = near[pairs[:, 0]].numpy(), pairs[:, 1].numpy() + start
            before = column < first + row
            results.append(self._compared(row[before], column[before], others, first))
        row, column, scores = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
        return row, others[column], scores

    def _compared(
        self, row: NDArray[np.int64], column: NDArray[np.int64], others: NDArray[np.int64], first: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """The pairs whose whole signatures are alike."""
        scores = np.zeros(len(row), np.float32)
        for start in range(0, len(row), _PAIRS):
            batch = slice(start, start + _PAIRS)
            one, other = others[first + row[batch]], others[column[batch]]
            scores[batch] = alike(self.signatures[one], self.signatures[other])
            scores[batch][np.maximum(self.sizes[one], self.sizes[other]) < SMALLEST_SIZE] = 0
        return row[scores > 0], column[scores > 0], scores[scores > 0]

    def _link(
        self, block: NDArray[np.int64], row: NDArray[np.int64], other: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> None:
        """Link the images of the block, in their order, to what they repeat."""
        best_first = np.lexsort((-scores, row))
        row, other = row[best_first], other[best_first]
        rows, starts = np.unique(row, return_index=True)
        for position, originals in zip(rows, np.split(other, starts)[1:], strict=True):
            index = int(block[position])
            later = originals[self.splits[originals] > self.splits[index]]
            same = originals[self.splits[originals] == self.splits[index]]
            for choice in (later, same[~self.copies.linked(same)]):
                original = next((one for one in choice[:_TRIES] if self.confirm(index, int(one))), None)
                if original is not None:
                    self.copies.link(np.array([index]), np.array([original]), self.splits)
                    break
