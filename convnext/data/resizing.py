"""Progressive resizing. Importing it is cheap: no torch."""

from convnext.config import DataSettings


def sizes_by_epoch(data: DataSettings, epochs: int) -> list[int]:
    """The side of the training images in each epoch (progressive resizing, Howard 2018; Tan & Le 2021).

    Args:
        data: says the first, the last, and after which fraction of the epochs that is reached.
        epochs: their number.

    Returns:
        One side an epoch, growing evenly, in steps of an eighth of the last one.
    """
    first, last = data.first_size, data.last_size
    if first == last:
        return [last] * epochs
    step = max(1, last // 8)
    growing = max(1, round(epochs * data.full_size_from))
    steps = ((last - first) * min(epoch / growing, 1.0) / step for epoch in range(epochs))
    return [last if epoch >= growing else first + step * int(s) for epoch, s in enumerate(steps)]
