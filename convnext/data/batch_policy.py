"""Colour jitter, RandAugment, AutoAugment and TrivialAugment for whole batches of images on their device.

What is drawn for an image is a function of (seed, epoch, image, repetition) alone. It is drawn on the host, which
groups a batch's images by operation: so no device is asked what it drew.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from convnext.config import AugmentSettings
from convnext.data.batch_ops import BLENDS, FACTOR, MATRICES, OPS, Affine, Op
from convnext.data.draws import words_for
from convnext.devices import send

_SAME = "Identity"
# Of RandAugment and TrivialAugment.
_RANDOM = (_SAME, *MATRICES, *BLENDS, "Posterize", "Solarize", "AutoContrast", "Equalize")
_JITTERED = "Brightness", "Contrast", "Color"
_NAMES = (_SAME, *OPS, *MATRICES)
_BINS, _AUTO_BINS = 31, 10  # strengths of an operation; the second of AutoAugment
_JITTERS = 2**12  # strengths of one of colour jitter

# An operation, which images of the batch get it, (m,) int64, and how strongly, (m,) int32.
Group = tuple[str, Tensor, Tensor]


@dataclass(frozen=True)
class Change:
    """An operation, strengths of which one is drawn, each as likely as the others, and how probable it is at all."""

    op: str
    strengths: tuple[float, ...] = (0.0,)
    probability: float = 1.0


@dataclass(frozen=True)
class Round:
    """Changes of which an image gets one, each as likely as the others.

    Attributes:
        changes: those.
        choice: the round whose draw chooses: its own number, or that of one before it whose choice it follows.
    """

    changes: tuple[Change, ...]
    choice: int


class BatchPolicy:
    """Draws operations for images, and does them.

    Args:
        settings: with a policy or colour jitter.
        image_size: width and height of the images in pixels.
        fill: colour of what an operation moves into the image, a value from 0 to 255 a channel.
        seed: of all draws.
        purpose: that they are drawn for; see `convnext.data.draws.words_for`.
        device: where the images are.
    """

    def __init__(
        self,
        settings: AugmentSettings,
        image_size: int,
        fill: Sequence[int],
        seed: int,
        purpose: int,
        device: torch.device,
    ) -> None:
        self._rounds = rounds_of(settings, image_size)
        self._seed, self._purpose, self._device = seed, purpose, device
        changes = [change for one in self._rounds for change in one.changes]
        moves: dict[str, list[float]] = {op: [] for op in MATRICES}
        codes = [_code(change.op, strength, moves) for change in changes for strength in change.strengths]
        affine = {op: Affine(op, strengths, image_size, fill, device) for op, strengths in moves.items() if strengths}
        self._do: dict[str, Op] = OPS | affine
        # By change; `_first` is that of a round.
        self._first = np.cumsum([0, *(len(one.changes) for one in self._rounds)])
        self._ops = np.array([_NAMES.index(change.op) for change in changes])
        self._most = np.array([round(change.probability * 2**32) for change in changes])
        self._counts = np.array([len(change.strengths) for change in changes])
        self._starts = np.cumsum(self._counts) - self._counts
        self._codes = np.array(codes, dtype=np.int32)

    def draw(self, keys: Tensor, counts: Sequence[int]) -> list[list[Group]]:
        """What is done with the images of batches, in that order.

        Args:
            keys: ``(n, 3)`` int64 on the host, of each epoch, index and repetition; of one batch after the other.
            counts: images of each batch.
        """
        words = words_for(keys, self._purpose, len(self._rounds), self._seed).numpy()
        batch = np.repeat(np.arange(len(counts)), counts)
        begins = np.repeat(np.cumsum(counts) - counts, counts)
        positions, strengths = np.empty((2, len(self._rounds), len(keys)), np.int64)
        sizes = []
        for number, one in enumerate(self._rounds):
            op, strength = self._drawn(number, words[:, one.choice, 0], words[:, number])
            order = np.lexsort((op, batch))
            positions[number], strengths[number] = order - begins, strength[order]
            sizes.append(np.bincount(batch * len(_NAMES) + op, minlength=len(counts) * len(_NAMES)))
        # One transfer for all of them.
        sent = send(torch.from_numpy(np.stack([positions, strengths])), self._device)
        by_round = [
            list(self._groups(own, positions_of, strengths_of, len(counts)))
            for own, positions_of, strengths_of in zip(sizes, sent[0], sent[1].int(), strict=True)
        ]
        return [[group for groups in of_batch for group in groups] for of_batch in zip(*by_round, strict=True)]

    def _drawn(self, number: int, choice: NDArray[np.int64], words: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Numbers of operations and coded strengths, by words of ``choice`` ``(n,)`` and of this round ``(n, 4)``."""
        chosen = self._first[number] + (choice * len(self._rounds[number].changes) >> 32)
        strength = self._codes[self._starts[chosen] + (words[:, 2] * self._counts[chosen] >> 32)]
        return [self._ops[chosen] * (words[:, 1] < self._most[chosen]), strength]

    @staticmethod
    def _groups(sizes: NDArray[np.int64], positions: Tensor, strengths: Tensor, batches: int) -> Iterator[list[Group]]:
        """A round's groups in each batch."""
        ends = np.cumsum(sizes)
        starts = (ends - sizes).reshape(batches, -1).tolist()
        for firsts, lasts in zip(starts, ends.reshape(batches, -1).tolist(), strict=True):
            spans = zip(_NAMES, firsts, lasts, strict=True)
            yield [(name, positions[a:b], strengths[a:b]) for name, a, b in spans if name != _SAME and a < b]

    def __call__(self, pixels: Tensor, groups: Sequence[Group]) -> Tensor:
        """The images ``(n, image_size, image_size, C)`` uint8, changed in place."""
        for op, positions, strengths in groups:
            made = self._do[op](pixels.index_select(0, positions), strengths)
            _wide(pixels).index_copy_(0, positions, _wide(made))
        return pixels


def _wide(pixels: Tensor) -> Tensor:
    """The images as rows of eight bytes together, if that many they have: a CPU copies those several times as fast."""
    rows = pixels.view(len(pixels), -1)
    return rows if rows.shape[1] % 8 else rows.view(torch.int64)


def rounds_of(settings: AugmentSettings, image_size: int) -> list[Round]:
    """What is done with an image, in order; strengths are torchvision's magnitudes."""
    rounds = []
    if settings.color_jitter:
        steps = settings.color_jitter * ((2 * np.arange(_JITTERS) + 1) / _JITTERS - 1)
        jitter = {op: Change(op, tuple(steps.tolist())) for op in _JITTERED}
        orders = zip(*permutations(_JITTERED), strict=True)
        rounds += [Round(tuple(jitter[op] for op in ops), 0) for ops in orders]
    if settings.policy == "trivialaugment":
        changes = [Change(op, _signed(op, _magnitudes(op, True, _BINS, image_size))) for op in _RANDOM]
        rounds.append(Round(tuple(changes), len(rounds)))
    if settings.policy == "randaugment":
        strength = settings.randaugment_magnitude
        changes = [Change(op, _signed(op, _magnitudes(op, False, _BINS, image_size)[strength:][:1])) for op in _RANDOM]
        rounds += [Round(tuple(changes), len(rounds) + number) for number in range(settings.randaugment_ops)]
    if settings.policy == "autoaugment":
        learned = AutoAugment(AutoAugmentPolicy(settings.autoaugment)).policies
        for both in zip(*learned, strict=True):
            changes = [
                Change(
                    op, _signed(op, _magnitudes(op, False, _AUTO_BINS, image_size)[strength or 0 :][:1]), probability
                )
                for op, probability, strength in both
            ]
            rounds.append(Round(tuple(changes), len(rounds)))
        rounds[-1] = Round(rounds[-1].changes, rounds[-2].choice)
    return rounds


def _magnitudes(op: str, wide: bool, bins: int, size: int) -> list[float]:
    """Of an operation, as many as there are bins, from none to the strongest; ``wide`` as in TrivialAugment."""
    largest = {"Rotate": (30.0, 135.0), "Posterize": (4, 6), "Solarize": (1.0, 1.0)}
    largest |= dict.fromkeys(BLENDS, (0.9, 0.99)) | dict.fromkeys(("ShearX", "ShearY"), (0.3, 0.99))
    largest |= dict.fromkeys(("TranslateX", "TranslateY"), (150 / 331 * size, 32.0))
    if op not in largest:
        return [0.0] * bins
    strongest = largest[op][wide]
    if op == "Posterize":
        bits: list[float] = (8 - torch.arange(bins) / ((bins - 1) / strongest)).round().tolist()
        return bits
    magnitudes: list[float] = torch.linspace(*((1.0, 0.0) if op == "Solarize" else (0.0, strongest)), bins).tolist()
    return magnitudes


def _signed(op: str, magnitudes: Sequence[float]) -> tuple[float, ...]:
    """In both directions, where the operation has two."""
    signs = (1, -1) if op in BLENDS or op in MATRICES else (1,)
    return tuple(sign * magnitude for magnitude in magnitudes for sign in signs)


def _code(op: str, strength: float, moves: dict[str, list[float]]) -> int:
    """A strength as the operation takes it; of one in ``moves`` its number among those there, to which it is added."""
    if op in moves:
        moves[op].append(strength)
        return len(moves[op]) - 1
    if op in BLENDS:
        return round((1 + strength) * FACTOR)
    if op == "Solarize":
        return math.ceil(255.0 * strength)  # no value lies between a threshold and the whole number above
    return int(strength)
