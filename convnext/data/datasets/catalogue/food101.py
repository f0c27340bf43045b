"""Food-101."""

from convnext.data.datasets.entries import Dataset, File, Settings, register_dataset
from convnext.data.datasets.fetching import find
from convnext.data.datasets.listing import file_source
from convnext.data.splits import Splits, make_splits, root_of
from convnext.errors import DataError


@register_dataset(
    "food101",
    Dataset(
        title="Food-101",
        summary="dishes, photographed by those who ate them; the training labels are a little noisy",
        images="colour, the longer side at most 512 px",
        licence="none stated; scientific fair use, the photographers' consent for anything else",
        home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        reported="test: the 25,250 test images",
        classes=101,
        splits={"train": 75_750, "test": 25_250},
        files=(
            File(
                *("food-101.tar.gz", "food-101", "85eeb15f3717b99a5da872d97d918f87", 4_996_278_331),
                mirrors=("http://data.vision.ee.ethz.ch/cvl/",),
            ),
        ),
    ),
)
def food101(entry: Dataset, settings: Settings) -> Splits:
    """Food-101, with its own split; torchvision knows the files' names and labels."""
    from torchvision.datasets import Food101

    root = find(entry, root_of(settings), lambda root: root.name == "food-101" and (root / "meta").is_dir())
    try:
        lists = {name: Food101(root.parent, split=name) for name in ("train", "test")}
    except (AttributeError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{root} is not complete ({error}): remove it, and it is fetched again") from None
    sources = {
        name: file_source(root, [str(path.relative_to(root)) for path in listed._image_files], listed._labels)
        for name, listed in lists.items()
    }
    classes = tuple(name.replace("_", " ") for name in lists["train"].classes)
    return make_splits(classes, sources, settings.test_fraction)
