"""The catalogue: what is known of each data set before a byte of it is here. Importing it is cheap: no torch.

Sizes, counts and checksums are the publishers' or torchvision's; the checksums of Imagewoof and Tiny ImageNet, which
their publishers do not state, are those that several independent projects verify the same files with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from convnext.errors import DataError, did_you_mean

_IMAGENET_TERMS = "ImageNet's terms (non-commercial research and education)"


@dataclass(frozen=True)
class File:
    """One file of a data set, and what becomes of it.

    Attributes:
        name: the file's name.
        becomes: what it is unpacked to, relative to ``data.root``; until then the file lies beside that.
        md5: its checksum.
        size: in bytes; None where it is not known for certain.
        mirrors: URLs of the folders that have it, in the order to try; none where an account is needed.
        holds: path in the archive of the folder that is meant; empty for a single file.
        within: path in the archive of the archive that holds it; empty for none.
    """

    name: str
    becomes: str
    md5: str
    size: int | None
    mirrors: tuple[str, ...] = ()
    holds: str = ""
    within: str = ""


@dataclass(frozen=True)
class Dataset:
    """A catalogue entry.

    Attributes:
        title: the name that people use.
        summary: one line: what is on the images.
        images: how large they are, and what else there is to know of the pixels.
        licence: the terms, as its publishers state them.
        home: where it is described.
        reported: which images published numbers are measured on, or what stands in for them.
        classes: their number; None where it depends on the folder.
        splits: number of images by split.
        files: what there is to download.
        class_names: names for people, by the class's name in the files; empty where the files tell.
        mean: channel means on a scale of 0 to 1, as usually published; empty where they are measured.
        std: channel standard deviations on that scale; empty where they are measured.
        instructions: how to come by the files, where they cannot be downloaded.
    """

    title: str
    summary: str
    images: str
    licence: str
    home: str
    reported: str
    classes: int | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    instructions: str = ""

    @property
    def size(self) -> int | None:
        """Bytes to download, as far as they are known; None where nothing is."""
        return sum(file.size or 0 for file in self.files) or None


def _idx(folder: str, mirrors: tuple[str, ...], files: tuple[tuple[str, str, int], ...]) -> tuple[File, ...]:
    return tuple(File(f"{name}.gz", f"{folder}/raw/{name}", md5, size, mirrors) for name, md5, size in files)


def _names(*names: str) -> Mapping[str, str]:
    return {name: name for name in names}


_MNIST_FILES = _idx(
    "MNIST",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    (
        ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
        ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
        ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
        ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
    ),
)
_FASHION_FILES = _idx(
    "FashionMNIST",
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    (
        ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
        ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
        ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
        ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    ),
)


def _cifar(
    classes: int,
    folder: str,
    md5: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: Mapping[str, str],
) -> Dataset:
    name = f"cifar-{classes}-python.tar.gz"
    return Dataset(
        title=f"CIFAR-{classes}",
        summary="small photographs of animals and vehicles" if classes == 10 else "small photographs of 100 things",
        images="colour, 32x32 px",
        licence="none stated; cite Krizhevsky 2009",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        reported="test: the 10,000 test images",
        classes=classes,
        splits={"train": 50_000, "test": 10_000},
        files=(File(name, folder, md5, size, ("https://www.cs.toronto.edu/~kriz/",), holds=folder),),
        class_names=class_names,
        mean=mean,
        std=std,
    )


_NETTE_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
_WOOF_NAMES = {
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _imagenette(title: str, side: int | None, md5: str, size: int) -> Dataset:
    folder = f"{title.lower()}2" + (f"-{side}" if side else "")
    nette = title == "Imagenette"
    mirrors = ("https://s3.amazonaws.com/fast-ai-imageclas/",)
    return Dataset(
        title=f"{title} ({f'{side} px' if side else 'full size'})",
        summary="ten easy classes of ImageNet" if nette else "ten breeds of dogs of ImageNet",
        images=f"colour, the shorter side {side} px" if side else "colour, of ImageNet's sizes",
        licence=f"Apache-2.0; images: {_IMAGENET_TERMS}",
        home="https://github.com/fastai/imagenette",
        reported="val: all validation images; there is no test split",
        classes=10,
        splits={"train": 9_469, "val": 3_925} if nette else {"train": 9_025, "val": 3_929},
        files=(File(f"{folder}.tgz", folder, md5, size, mirrors, holds=folder),),
        class_names=_NETTE_NAMES if nette else _WOOF_NAMES,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    )


def _caltech(classes: int, per_class: int, splits: Mapping[str, int], images: str, home: str, file: File) -> Dataset:
    return Dataset(
        title=f"Caltech-{classes}",
        summary=f"pictures of {classes} kinds of objects, with the background class left out",
        images=f"colour and grey, {images}",
        licence="CC BY 4.0",
        home=home,
        reported=f"test: there is no official split; {per_class} images a class train, as usual, drawn by a fixed "
        f"seed, and the rest is the test (a class of no more than that keeps one for it)",
        classes=classes,
        splits=splits,
        files=(file,),
    )


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        title="Digits",
        summary="handwritten digits, part of scikit-learn",
        images="grey, 8x8 px",
        licence="CC BY 4.0 (UCI)",
        home="https://archive.ics.uci.edu/dataset/80",
        reported="test: a stratified fifth (data.test_fraction) of all images, drawn by a fixed seed",
        classes=10,
        splits={"train": 1_437, "test": 360},
        class_names=_names(*"0123456789"),
    ),
    "mnist": Dataset(
        title="MNIST",
        summary="handwritten digits",
        images="grey, 28x28 px",
        licence="CC BY-SA 3.0",
        home="http://yann.lecun.com/exdb/mnist/",
        reported="test: the 10,000 test images",
        classes=10,
        splits={"train": 60_000, "test": 10_000},
        files=_MNIST_FILES,
        class_names=_names(*"0123456789"),
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion-mnist": Dataset(
        title="Fashion-MNIST",
        summary="clothes, from a shop's catalogue",
        images="grey, 28x28 px",
        licence="MIT",
        home="https://github.com/zalandoresearch/fashion-mnist",
        reported="test: the 10,000 test images",
        classes=10,
        splits={"train": 60_000, "test": 10_000},
        files=_FASHION_FILES,
        class_names=_names(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "cifar10": _cifar(
        *(10, "cifar-10-batches-py", "c58f30108f718f92721af3b95e74349a", 170_498_071),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        class_names=_names(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
    "cifar100": _cifar(
        *(100, "cifar-100-python", "eb9058c3a382ffc7106e4002c42a8d85", 169_001_437),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        class_names={},
    ),
    "tiny-imagenet": Dataset(
        title="Tiny ImageNet",
        summary="200 classes of ImageNet, 500 training images each; or some of them, in the same layout",
        images="colour, 64x64 px",
        licence=f"none stated; images: {_IMAGENET_TERMS}",
        home="http://cs231n.stanford.edu/",
        reported="val: the 10,000 validation images; the labels of test/ were never published",
        classes=200,
        splits={"train": 100_000, "val": 10_000},
        files=(
            File(
                *("tiny-imagenet-200.zip", "tiny-imagenet-200", "90528d7ca1a48142e341f4ef8d21d0de", 248_100_043),
                mirrors=("http://cs231n.stanford.edu/",),
                holds="tiny-imagenet-200",
            ),
        ),
    ),
    "imagenette": _imagenette("Imagenette", None, "fe2fc210e6bb7c5664d602c3cd71e612", 1_557_161_267),
    "imagenette320": _imagenette("Imagenette", 320, "3df6f0d01a2c9592104656642f5e78a3", 341_663_724),
    "imagenette160": _imagenette("Imagenette", 160, "e793b78cc4c9e9a4ccc0c1155377a412", 99_003_388),
    "imagewoof": _imagenette("Imagewoof", None, "9aafe18bcdb1632c4249a76c458465ba", 1_343_715_595),
    "imagewoof320": _imagenette("Imagewoof", 320, "0f46d997ec2264e97609196c95897a44", 328_387_740),
    "imagewoof160": _imagenette("Imagewoof", 160, "3d200a7be99704a0d7509be2a9fbfe15", 92_612_825),
    "food101": Dataset(
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
                holds="food-101",
            ),
        ),
    ),
    "caltech101": _caltech(
        *(101, 30, {"train": 3_030, "test": 5_647}, "about 300x200 px", "https://data.caltech.edu/records/mzrjq-6wc02"),
        File(
            *("caltech-101.zip", "caltech101/101_ObjectCategories", "3138e1922a9193bfa496528edbbc45d0", 137_414_764),
            mirrors=("https://data.caltech.edu/records/mzrjq-6wc02/files/",),
            holds="101_ObjectCategories",
            within="caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
    "caltech256": _caltech(
        *(256, 60, {"train": 15_360, "test": 14_420}, "of many sizes", "https://data.caltech.edu/records/nyy15-4j048"),
        File(
            *("256_ObjectCategories.tar", "caltech256/256_ObjectCategories", "67b4f42ca05d46448c6bb8ecd2220f6d", None),
            mirrors=("https://data.caltech.edu/records/nyy15-4j048/files/",),
            holds="256_ObjectCategories",
        ),
    ),
    "mini-imagenet": Dataset(
        title="mini-ImageNet",
        summary="100 classes of ImageNet, 600 images each, known from few-shot learning",
        images="colour, mostly 84x84 px (as the copy has them)",
        licence=f"none stated; images: {_IMAGENET_TERMS}",
        home="https://arxiv.org/abs/1606.04080",
        reported="test: there is none for classification; the few-shot lists (64, 16 and 20 classes) are pooled, and a "
        "stratified fifth (data.test_fraction) of all 100 classes is held out by a fixed seed",
        classes=100,
        splits={"train": 48_000, "test": 12_000},
        instructions="it has no official download; put images/ with train.csv, val.csv and test.csv (columns filename "
        "and label), or a folder a class, into data.root",
    ),
    "imagenet": Dataset(
        title="ImageNet-1K (ILSVRC 2012)",
        summary="1,000 classes of things and animals, the usual yardstick",
        images="colour, of many sizes, about 500x400 px",
        licence=_IMAGENET_TERMS,
        home="https://image-net.org/challenges/LSVRC/2012/",
        reported="val: the 50,000 validation images; the labels of the test images were never published",
        classes=1000,
        splits={"train": 1_281_167, "val": 50_000},
        files=(
            File("ILSVRC2012_img_train.tar", "train", "1d675b47d978889d74fa0da5fadfb00e", 147_897_477_120),
            File("ILSVRC2012_img_val.tar", "val", "29b22e2961454d5413ddabcf34fc5622", 6_744_924_160),
            File("ILSVRC2012_devkit_t12.tar.gz", "", "fa75699e90414af021442c21a62c3abf", None),
        ),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        instructions="register at https://image-net.org/download-images, accept the terms, and put "
        "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz into data.root (they are "
        "unpacked at first use), or the extracted train/<wnid>/ and val/<wnid>/",
    ),
    "folder": Dataset(
        title="any image folder",
        summary="your images: <root>/train/<class>/*, optional val/ and test/; or <root>/<class>/*",
        images="any that Pillow opens",
        licence="yours",
        home="README.md",
        reported="test: test/, else val/, else a stratified fifth (data.test_fraction) held out by a fixed seed",
    ),
}

# Names that are patterns: what follows the colon says where the images are.
FAMILIES = {
    "hf:": "hf:owner/name: any image classification set of the Hugging Face hub (pip install 'convnext[hub]')",
    "wds:": "wds:pattern: WebDataset shards, such as wds:train-{0000..0099}.tar (pip install 'convnext[wds]')",
}


def find_entry(name: str) -> Dataset:
    """The catalogue's entry.

    Raises:
        DataError: there is none of that name.
    """
    try:
        return DATASETS[name]
    except KeyError:
        known = [*DATASETS, *FAMILIES]
        raise DataError(f"no data set is called {name!r}: {did_you_mean(name, known)}") from None
