"""Digits, which come with scikit-learn."""

from convnext.data.datasets.entries import Dataset, Settings, register_dataset, same_names
from convnext.data.splits import Splits, make_splits


@register_dataset(
    "digits",
    Dataset(
        title="Digits",
        summary="handwritten digits, part of scikit-learn",
        images="grey, 8x8 px",
        licence="CC BY 4.0 (UCI)",
        home="https://archive.ics.uci.edu/dataset/80",
        reported="test: a stratified fifth (data.test_fraction) of all images, drawn by a fixed seed",
        classes=10,
        splits={"train": 1_437, "test": 360},
        class_names=same_names(*"0123456789"),
    ),
)
def digits(entry: Dataset, settings: Settings) -> Splits:
    """Scikit-learn's digits, with a stratified test split."""
    import numpy as np
    from sklearn.datasets import load_digits

    from convnext.data.sources import ArraySource

    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    source = ArraySource(images, data.target.astype(np.int64), channels=1)
    return make_splits(tuple(entry.class_names.values()), {"train": source}, settings.test_fraction)
