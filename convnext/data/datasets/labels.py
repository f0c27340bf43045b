"""From labels as others wrote them to numbered classes: what Hugging Face data sets and shards share."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnext.errors import DataError

Labels: TypeAlias = NDArray[np.int64] | NDArray[np.str_]


def number_classes(
    labels: dict[str, Labels], names: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Turn labels into class indices.

    Args:
        labels: of each split, ``"train"`` among them: ``(N,)`` numbers from 0, or ``(N,)`` names.
        names: the classes in order, where they are known; else names are sorted, and numbers are named ``"0"``,
            ``"1"``, and so on.
        where: what to call the data in an error.

    Returns:
        The classes, and each split's ``(N,)`` class indices.

    Raises:
        DataError: labels of both kinds, one class only, a class that is not known, or labels that name no classes since
            nearly every image has one of its own.
    """
    if len({values.dtype.kind for values in labels.values()}) > 1:
        raise DataError(f"{where}: some labels are numbers and others are names: use one kind")
    train = labels["train"]
    if train.dtype.kind == "U":
        classes = tuple(np.unique(train).tolist() if names is None else names)
        too_many = names is None and 2 * len(classes) > len(train)
        numbers = {split: _numbers(values, classes, f"{where} ({split})") for split, values in labels.items()}
    else:
        numbers = {split: values.astype(np.int64) for split, values in labels.items()}
        lowest, highest = (int(bound(np.concatenate(list(numbers.values())))) for bound in (np.min, np.max))
        if lowest < 0:
            raise DataError(f"{where}: label {lowest} is below 0: classes are numbered from 0")
        classes = tuple(map(str, range(highest + 1)) if names is None else names)
        too_many = names is None and highest >= len(train)
        if highest >= len(classes):
            raise DataError(f"{where}: label {highest}, but there are {len(classes)} classes, numbered from 0")
    if too_many:
        raise DataError(f"{where}: {len(classes)} classes for {len(train)} training images: are its labels no classes?")
    if len(classes) < 2:
        raise DataError(f"{where} has one class only ({classes[0]}): a classifier needs at least two")
    return classes, numbers


def _numbers(labels: Labels, classes: tuple[str, ...], where: str) -> NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(classes)}
    names, inverse = np.unique(labels, return_inverse=True)
    unknown = [name for name in names.tolist() if name not in numbers]
    if unknown:
        raise DataError(f"{where} has classes that are not known: {', '.join(map(repr, unknown[:5]))}")
    return np.array([numbers[name] for name in names.tolist()], np.int64)[inverse]
