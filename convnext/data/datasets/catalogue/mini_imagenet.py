"""mini-ImageNet, for classification."""

import csv
from pathlib import Path

from convnext.data.datasets.catalogue.folder import folder
from convnext.data.datasets.entries import IMAGENET_TERMS, Dataset, Settings, register_dataset
from convnext.data.datasets.listing import file_source, human_names, read_lines, synset_names
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError


@register_dataset(
    "mini-imagenet",
    Dataset(
        title="mini-ImageNet",
        summary="100 classes of ImageNet, 600 images each, known from few-shot learning",
        images="colour, mostly 84x84 px (as the copy has them)",
        licence=f"none stated; images: {IMAGENET_TERMS}",
        home="https://arxiv.org/abs/1606.04080",
        reported="test: there is none for classification; the few-shot lists (64, 16 and 20 classes) are pooled, and a "
        "stratified fifth (data.test_fraction) of all 100 classes is held out by a fixed seed",
        classes=100,
        splits={"train": 48_000, "test": 12_000},
        instructions="it has no official download; put images/ with train.csv, val.csv and test.csv (columns filename "
        "and label), or a folder a class, into data.root",
    ),
)
def mini_imagenet(entry: Dataset, settings: Settings) -> Splits:
    """All classes of the lists together, of which a stratified fraction is the test.

    The lists of few-shot learning (train.csv, val.csv and test.csv) have different classes each, so they are no split
    of a classification task. Without them, the folder is read like any other.
    """
    root = root_of(settings)
    lists = [path for path in (root / f"{name}.csv" for name in ("train", "val", "test")) if path.is_file()]
    if not lists:
        if not root.is_dir():
            raise DataError(f"{entry.title} is not in {root}: {entry.instructions}")
        return folder(entry, settings)
    rows = [row for path in lists for row in _rows(path)]
    wnids = sorted({label for _, label in rows})
    if len(wnids) < 2:
        raise DataError(f"the lists in {root} have one class only: a classifier needs at least two")
    index = {wnid: target for target, wnid in enumerate(wnids)}
    source = file_source(root, [f"images/{name}" for name, _ in rows], [index[label] for _, label in rows])
    return make_splits(human_names(wnids, synset_names(root)), {"train": source}, settings.test_fraction)


def _rows(path: Path) -> list[tuple[str, str]]:
    rows = [(row.get("filename"), row.get("label")) for row in csv.DictReader(read_lines(path))]
    complete = [(name, label) for name, label in rows if name and label]
    if not rows or len(complete) < len(rows):
        raise DataError(f"{path} lacks values: expected the columns filename and label")
    return complete
