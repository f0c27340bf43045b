"""Random numbers by counters."""

import numpy as np
import pytest
import torch
from scipy import stats

from convnext.data.draws import WORD, integers, occurs, philox, pick, quantiles


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_generator_is_philox4x32_10(counter: str, key: str, words: str) -> None:
    """By the vectors that its authors publish (Random123, ``kat_vectors``)."""
    seed = sum(int(word, 16) << 32 * index for index, word in enumerate(key.split()))
    made = philox(torch.tensor([[int(word, 16) for word in counter.split()]] * 3), seed)
    assert made.tolist() == [[int(word, 16) for word in words.split()]] * 3


def counters(count: int) -> torch.Tensor:
    """Those of so many images, in epoch 3."""
    return torch.tensor([[3, index, 0, 0] for index in range(count)])


def test_neighbouring_counters_and_seeds_give_independent_uniform_words() -> None:
    words = np.concatenate([philox(counters(20_000), seed).numpy() for seed in (0, 1)], 1) / (WORD + 1)
    assert words.shape == (20_000, 8)
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in words.T)
    following = np.hstack([words[:-1], words[1:]])
    correlations = np.asarray(np.corrcoef(following, rowvar=False))[np.triu_indices(16, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)


def test_integers_and_chances_have_their_frequencies() -> None:
    words = philox(counters(30_000), 7)
    counts = torch.bincount(integers(words[:, 0], 9))
    assert stats.chisquare(counts).pvalue > 1e-3
    several = integers(words[:, 1:3], torch.tensor([5, 2]))
    assert several.amax(0).tolist() == [4, 1]
    assert occurs(words[:, 3], 0.3).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not occurs(words, 0.0).any()
    assert occurs(torch.tensor([0, WORD]), 1.0).all()
    assert integers(torch.tensor([0, WORD]), 9).tolist() == [0, 8]


def test_quantiles_are_a_distribution() -> None:
    beta = quantiles(stats.beta(0.8, 0.8).ppf)
    drawn = pick(philox(counters(20_000), 7), beta).numpy()
    assert drawn.dtype == np.float32
    assert all(stats.kstest(column, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3 for column in drawn.T)
