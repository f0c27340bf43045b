"""Drawing each class equally often: how often, in which views, and from where one goes on."""

from collections import Counter

import numpy as np
import pytest

from convnext.data.loading.loader import Key, TrainSampler, training_sampler
from convnext.data.sources import ArraySource
from convnext.recipes import recipe

SIZES = {0: 150, 1: 40, 3: 9, 4: 1}  # class 2 has no images
TARGETS = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))


def epoch_keys(number: int, repeats: int = 1, groups: np.ndarray | None = None) -> list[Key]:
    sampler = TrainSampler(len(TARGETS), 20, epochs=3, seed=1, repeats=repeats, groups=groups, balanced=TARGETS)
    assert sampler.steps_per_epoch == 10
    return [key for batch in sampler for key in batch if key[0] == number]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_class_comes_equally_often_in_an_epoch_of_the_same_length(repeats: int, grouped: bool) -> None:
    groups = TARGETS * 10 + np.arange(len(TARGETS)) % 3 if grouped else None  # files that have one class each
    keys = epoch_keys(0, repeats, groups)
    assert len(keys) == len(set(keys)) == 200  # no view comes twice
    counts = Counter(int(TARGETS[index]) for _, index, _ in keys)
    assert counts.keys() == SIZES.keys()
    assert max(counts.values()) - min(counts.values()) <= repeats


def test_the_images_of_a_class_come_equally_often_and_others_in_the_next_epoch() -> None:
    for label in SIZES:
        times = Counter(dict.fromkeys(np.flatnonzero(label == TARGETS).tolist(), 0))
        times.update(index for _, index, _ in epoch_keys(0) if TARGETS[index] == label)
        assert max(times.values()) - min(times.values()) <= 1
    first, second = ({index for _, index, _ in epoch_keys(number) if not TARGETS[index]} for number in (0, 1))
    assert len(first) == len(second) == 50
    assert first != second


def test_images_of_a_batch_stay_together_in_repeated_augmentation() -> None:
    keys = epoch_keys(0, repeats=3)
    for start in range(0, 198, 3):
        assert len({index for _, index, _ in keys[start : start + 3]}) == 1
        assert len({view for *_, view in keys[start : start + 3]}) == 3


def test_it_goes_on_anywhere_and_processes_take_a_fraction_each() -> None:
    def batches(start_step: int = 0, rank: int = 0, world_size: int = 1) -> list[list[Key]]:
        sampler = TrainSampler(200, 20, 3, 1, start_step, rank, world_size, repeats=2, balanced=TARGETS)
        return list(sampler)

    whole = batches()
    assert batches(start_step=13) == whole[13:]
    of_three = zip(*(batches(rank=rank, world_size=3) for rank in range(3)), strict=True)
    for batch, fractions in zip(whole, of_three, strict=True):
        assert sorted(batch) == sorted(key for fraction in fractions for key in fraction)


def test_the_setting_chooses_the_sampler() -> None:
    source = ArraySource(np.zeros((200, 8, 8), np.uint8), TARGETS, channels=1)
    drawn = {}
    for name in ("shuffle", "balanced"):
        settings = recipe("digits", epochs=1, batch_size=20, **{"data.sampler": name})
        drawn[name] = Counter(
            int(TARGETS[index]) for batch in training_sampler(settings, source, 0, 1) for _, index, _ in batch
        )
    assert drawn == {"shuffle": SIZES, "balanced": dict.fromkeys(SIZES, 50)}
