"""What policies draw for whole batches has torchvision's distributions, and depends on nothing but the image's key."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from convnext.config import AugmentSettings
from convnext.data.batch_ops import FACTOR, OPS
from convnext.data.batch_policy import BatchPolicy, rounds_of

CPU = torch.device("cpu")
SIDE = 48
COUNT = 6000


def policy(settings: AugmentSettings, side: int = SIDE, seed: int = 3) -> BatchPolicy:
    return BatchPolicy(settings, side, (127, 51, 178), seed, 1280, CPU)


def keys(count: int, epoch: int = 1) -> Tensor:
    return torch.tensor([[epoch, index, 0] for index in range(count)])


class Recording(v2.Transform):  # type: ignore[misc]
    """A mixin of torchvision's policies, which notes operations in place of doing them."""

    def _apply_image_or_video_transform(self, image: Any, op: str, magnitude: float, **_: Any) -> Any:
        self.noted.append((op, round(magnitude, 4)))
        return image


def recorded(settings: AugmentSettings) -> Counter[tuple[tuple[str, float], ...]]:
    """How often torchvision's policy does what, in `COUNT` draws."""

    class RandAugment(Recording, v2.RandAugment): ...  # type: ignore[misc]

    class AutoAugment(Recording, v2.AutoAugment): ...  # type: ignore[misc]

    class TrivialAugment(Recording, v2.TrivialAugmentWide): ...  # type: ignore[misc]

    made: Any = {
        "randaugment": lambda: RandAugment(settings.randaugment_ops, settings.randaugment_magnitude),
        "autoaugment": lambda: AutoAugment(v2.AutoAugmentPolicy(settings.autoaugment)),
        "trivialaugment": TrivialAugment,
    }[settings.policy]()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    image, seen = Image.new("RGB", (SIDE, SIDE)), Counter[tuple[tuple[str, float], ...]]()
    for _ in range(COUNT):
        made.noted = []
        made(image)
        seen[tuple(made.noted)] += 1
    return seen


def expected(settings: AugmentSettings) -> dict[tuple[tuple[str, float], ...], float]:
    """The probabilities of what our rounds do."""
    rounds = rounds_of(settings, SIDE)
    done: dict[tuple[tuple[str, float], ...], float] = {}

    def walk(index: int, before: tuple[tuple[str, float], ...], choices: tuple[int, ...], probability: float) -> None:
        if index == len(rounds):
            done[before] = done.get(before, 0.0) + probability
            return
        one = rounds[index]
        options = [choices[one.choice]] if one.choice < index else range(len(one.changes))
        for number in options:
            change, each = one.changes[number], probability / len(options)
            if change.probability < 1:
                walk(index + 1, before, (*choices, number), each * (1 - change.probability))
            for strength in change.strengths:
                does = (*before, (change.op, round(strength, 4)))
                walk(index + 1, does, (*choices, number), each * change.probability / len(change.strengths))

    walk(0, (), (), 1.0)
    return done


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "trivialaugment"},
        {"policy": "randaugment", "randaugment_ops": 1, "randaugment_magnitude": 17},
        {"policy": "randaugment"},
        *({"policy": "autoaugment", "autoaugment": name} for name in ("imagenet", "cifar10", "svhn")),
    ],
    ids=str,
)
def test_operations_and_strengths_are_as_frequent_as_torchvisions(changes: dict[str, Any]) -> None:
    settings = AugmentSettings(**changes)
    seen, probable = recorded(settings), expected(settings)
    assert sum(probable.values()) == pytest.approx(1)
    assert not set(seen) - set(probable)
    # Rare ones are counted together.
    common = [what for what, probability in probable.items() if probability * COUNT >= 8]
    counts = np.array([seen[what] for what in common] + [COUNT - sum(seen[what] for what in common)])
    wanted = np.array([probable[what] for what in common] + [1 - sum(probable[what] for what in common)]) * COUNT
    filled = wanted > 1e-6
    assert counts[~filled].sum() == 0
    assert stats.chisquare(counts[filled], wanted[filled] * counts.sum() / wanted[filled].sum()).pvalue > 1e-3


def sequences(drawn: list[list[tuple[str, Tensor, Tensor]]], count: int) -> list[list[tuple[str, int]]]:
    """What each of the images of a batch gets, in order, with the strength's code."""
    done: list[list[tuple[str, int]]] = [[] for _ in range(count)]
    for op, positions, strengths in drawn[0]:
        for position, strength in zip(positions.tolist(), strengths.tolist(), strict=True):
            done[position].append((op, strength))
    return done


def test_draws_are_as_frequent_as_the_rounds_say() -> None:
    done = sequences(policy(AugmentSettings(policy="trivialaugment")).draw(keys(COUNT), [COUNT]), COUNT)
    ops = Counter(own[0][0] if own else "Identity" for own in done)
    assert len(ops) == 14
    assert stats.chisquare(list(ops.values())).pvalue > 1e-3
    bits = Counter(own[0][1] for own in done if own and own[0][0] == "Posterize")
    assert set(bits) == {2, 3, 4, 5, 6, 7, 8}
    turns = Counter(own[0][1] for own in done if own and own[0][0] == "Rotate")
    assert set(turns) <= set(range(62))
    assert len(turns) > 50
    done = sequences(
        policy(AugmentSettings(policy="autoaugment", autoaugment="svhn")).draw(keys(COUNT), [COUNT]), COUNT
    )
    rounds = rounds_of(AugmentSettings(policy="autoaugment", autoaugment="svhn"), SIDE)
    probable = [np.mean([change.probability for change in one.changes]) for one in rounds]
    assert np.mean([len(own) for own in done]) == pytest.approx(sum(probable), abs=0.04)


@pytest.mark.parametrize("name", ["trivialaugment", "autoaugment"])
def test_solarize_inverts_the_values_that_torchvision_inverts(name: str) -> None:
    """At every strength; some thresholds are hardly more than whole numbers."""
    settings = AugmentSettings(policy=name, autoaugment="svhn")
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    done = sequences(policy(settings, side=16).draw(keys(COUNT), [COUNT]), COUNT)
    codes = sorted({code for own in done for op, code in own if op == "Solarize"})
    rounds = rounds_of(settings, 16)
    strengths = {s for one in rounds for change in one.changes if change.op == "Solarize" for s in change.strengths}
    assert len(codes) == len(strengths) > 2
    image = Image.fromarray(values[0, ..., 0].numpy())
    for code, strength in zip(codes, sorted(strengths), strict=True):
        made = OPS["Solarize"](values, torch.tensor([code]))[0, ..., 0]
        assert np.array_equal(made, functional.solarize(image, 255.0 * strength)), strength


def test_colour_jitter_draws_factors_and_an_order() -> None:
    done = sequences(policy(AugmentSettings(color_jitter=0.4)).draw(keys(COUNT), [COUNT]), COUNT)
    orders = Counter(tuple(op for op, _ in own) for own in done)
    assert {tuple(sorted(order)) for order in orders} == {("Brightness", "Color", "Contrast")}
    assert len(orders) == 6
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3
    factors = {
        op: [code / FACTOR for own in done for name, code in own if name == op] for op in ("Brightness", "Color")
    }
    assert all(stats.kstest(drawn, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3 for drawn in factors.values())
    assert abs(stats.pearsonr(*factors.values()).statistic) < 0.05


ALL = AugmentSettings(policy="randaugment", randaugment_ops=3, color_jitter=0.3)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("policy_name", ["randaugment", "autoaugment", "trivialaugment"])
def test_an_image_becomes_the_same_in_any_batch(policy_name: str, channels: int) -> None:
    settings = ALL.replace(policy=policy_name)
    own = BatchPolicy(settings, 15, (99,) * channels, 3, 1280, CPU)  # of an odd number of bytes
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 15, 15, channels), np.uint8))
    counts = [13, 0, 26, 1]
    changed = [
        own(batch.clone(), groups)
        for batch, groups in zip(torch.split(pixels, counts), own.draw(keys(40), counts), strict=True)
    ]
    for number, made in enumerate(torch.cat(changed)):
        alone = own(pixels[number : number + 1].clone(), own.draw(keys(40)[number : number + 1], [1])[0])
        assert torch.equal(alone[0], made)
    assert not torch.equal(torch.cat(changed), pixels)
    other = own(pixels.clone(), own.draw(keys(40, epoch=2), [40])[0])
    assert not torch.equal(torch.cat(changed), other)


def test_a_step_of_a_policy_that_is_stronger_changes_more() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(90, 160, (300, SIDE, SIDE, 3), np.uint8))

    def change(magnitude: int) -> float:
        own = policy(AugmentSettings(policy="randaugment", randaugment_magnitude=magnitude))
        made = own(pixels.clone(), own.draw(keys(300), [300])[0])
        return (made.int() - pixels.int()).abs().float().mean().item()

    assert change(0) < change(9) < change(25)
