"""Progressive resizing. Importing it is cheap: no torch."""


def sizes_by_epoch(image_size: int, start_size: int | None, full_size_from: float, epochs: int) -> list[int]:
    """The side of the training images in each epoch (progressive resizing, Howard 2018; Tan & Le 2021).

    Args:
        image_size: the last one.
        start_size: the first one; None for ``image_size`` throughout.
        full_size_from: fraction of the epochs after which ``image_size`` is reached.
        epochs: their number.

    Returns:
        One side an epoch, growing evenly, in steps of an eighth of ``image_size``.
    """
    if start_size is None:
        return [image_size] * epochs
    step = max(1, image_size // 8)
    growing = max(1, round(epochs * full_size_from))
    steps = ((image_size - start_size) * min(epoch / growing, 1.0) / step for epoch in range(epochs))
    return [image_size if epoch >= growing else start_size + step * int(s) for epoch, s in enumerate(steps)]
