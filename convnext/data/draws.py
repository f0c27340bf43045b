"""Random numbers as functions of counters: for a whole batch at once, and the same bits on every device.

The generator is Philox4x32-10 (Salmon et al. 2011): each number is computed from its counter alone, so that an image's
do not depend on the batch that it is in; it multiplies 32-bit integers, which 64-bit ones hold exactly on every device;
and its authors publish vectors to test it by. What is made of its words are integers and looked-up numbers, since
logarithms and powers have other last bits on other devices.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORD = 2**32 - 1  # the largest
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_QUANTILES = 2**16


def philox(counter: Tensor, seed: int) -> Tensor:
    """Four random words for each counter.

    Args:
        counter: ``(..., 4)`` int64 from 0 to `WORD`.
        seed: from 0 to 2**64 - 1.

    Returns:
        ``(..., 4)`` int64 from 0 to `WORD`.
    """
    a, b, c, d = counter.unbind(-1)
    keys = seed & WORD, seed >> 32
    for _ in range(_ROUNDS):
        # Products are of 64 bits without a sign: what the shift carries in from that is masked out again.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32 & WORD) ^ b ^ keys[0],
            second & WORD,
            (first >> 32 & WORD) ^ d ^ keys[1],
            first & WORD,
        )
        keys = (keys[0] + _KEY_STEPS[0]) & WORD, (keys[1] + _KEY_STEPS[1]) & WORD
    return torch.stack([a, b, c, d], -1)


def words_for(keys: Tensor, purpose: int, count: int, seed: int) -> Tensor:
    """Random words of images, for one purpose.

    Args:
        keys: ``(n, 3)`` int64, three numbers that name what is drawn for: epoch, index and repetition.
        purpose: what they are for; those from it on up to ``count`` more are taken.
        count: counters for each image.
        seed: as of `philox`.

    Returns:
        ``(n, count, 4)``.
    """
    last = torch.arange(purpose, purpose + count, device=keys.device).expand(len(keys), -1)
    return philox(torch.cat([keys[:, None].expand(-1, count, -1), last[..., None]], -1), seed)


def occurs(words: Tensor, probability: float) -> Tensor:
    """Whether what has that probability happens, by a word each."""
    return words < round(probability * 2**32)


def integers(words: Tensor, bound: int | Tensor) -> Tensor:
    """Integers from 0 up to but not including ``bound``, each as likely as the others to one in 2**32 / bound."""
    return (words * bound) >> 32


def quantiles(inverse: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Tensor:
    """A distribution for `pick`: 65,536 equally likely numbers, float32, by the inverse of its cumulative function."""
    return torch.from_numpy(inverse((np.arange(_QUANTILES) + 0.5) / _QUANTILES).astype(np.float32))


def pick(words: Tensor, distribution: Tensor) -> Tensor:
    """Numbers of a distribution of `quantiles`, on the words' device."""
    return distribution[words >> 16]
