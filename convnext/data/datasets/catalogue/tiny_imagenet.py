"""Tiny ImageNet. Its publishers state no checksum: it is the one that several projects verify the file with."""

from dataclasses import replace

from convnext.data.datasets.entries import IMAGENET_TERMS, Dataset, File, Settings, register_dataset
from convnext.data.datasets.fetching import find
from convnext.data.datasets.listing import file_source, human_names, list_images, read_lines, subfolders, synset_names
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError


@register_dataset(
    "tiny-imagenet",
    Dataset(
        title="Tiny ImageNet",
        summary="200 classes of ImageNet, 500 training images each; or some of them, in the same layout",
        images="colour, 64x64 px",
        licence=f"none stated; images: {IMAGENET_TERMS}",
        home="http://cs231n.stanford.edu/",
        reported="val: the 10,000 validation images; the labels of test/ were never published",
        classes=200,
        splits={"train": 100_000, "val": 10_000},
        files=(
            File(
                *("tiny-imagenet-200.zip", "tiny-imagenet-200", "90528d7ca1a48142e341f4ef8d21d0de", 248_100_043),
                mirrors=("http://cs231n.stanford.edu/",),
            ),
        ),
    ),
)
def tiny_imagenet(entry: Dataset, settings: Settings) -> Splits:
    """Tiny ImageNet, or some of its classes: those that wnids.txt lists and train/ has. Tested on val/."""
    root = find(entry, root_of(settings), lambda root: (root / "wnids.txt").is_file())
    there = set(subfolders(root, "train"))
    wnids = sorted(there.intersection(read_lines(root / "wnids.txt")))
    if len(wnids) < 2:
        raise DataError(f"{root} has {len(wnids)} of the classes that its wnids.txt lists in train/: two are needed")
    train = list_images(root, (f"train/{wnid}/images" for wnid in wnids))
    index = {wnid: target for target, wnid in enumerate(wnids)}
    annotations = [line.split("\t") for line in read_lines(root / "val" / "val_annotations.txt")]
    labelled = [(f"val/images/{line[0]}", index[line[1]]) for line in annotations if len(line) > 1 and line[1] in index]
    if not labelled:
        raise DataError(f"{root / 'val' / 'val_annotations.txt'} names no image of the classes in train/")
    val = file_source(root, *zip(*labelled, strict=True))
    names = human_names(wnids, synset_names(root))
    sources = {name: replace(source, one_size=True) for name, source in (("train", train), ("val", val))}
    return make_splits(names, sources, settings.test_fraction)
