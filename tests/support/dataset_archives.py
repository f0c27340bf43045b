"""The data sets in small: archives with the originals' names, folders and formats.

Each class of each set is a shade of its own, `SHADE` levels apart, so that a test can tell labels from pixels.
"""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.datasets.catalogue import DATASETS

SHADE = 20


def pixels(label: int, side: int) -> NDArray[np.uint8]:
    """``(side, side)`` pixels whose mean divided by `SHADE` is the label."""
    noise = np.random.default_rng(label).integers(0, 8, (side, side))
    return (label * SHADE + 6 + noise).astype(np.uint8)


def jpeg(label: int, side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(label, side)).convert("RGB").save(stream, "JPEG", quality=95)
    return stream.getvalue()


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist() -> list[bytes]:
    """The four IDX files, not compressed: 40 training and 20 test images of ten classes."""
    files = []
    for count in (40, 20):
        labels = np.arange(count) % 10
        files += [idx(np.stack([pixels(int(label), 28) for label in labels])), idx(labels.astype(np.uint8))]
    return files


def cifar(name: str) -> dict[str, bytes]:
    """The pickled files of CIFAR-10, or those of a CIFAR-100 of ten classes."""
    if name == "cifar10":
        counts = {f"data_batch_{number}": 20 for number in range(1, 6)} | {"test_batch": 20}
        meta, key, names = "batches.meta", "label_names", list(DATASETS[name].class_names)
    else:
        counts, meta, key = {"train": 60, "test": 20}, "meta", "fine_label_names"
        names = ["apple", "aquarium_fish", *(f"class_{number}" for number in range(2, 10))]
    files = {meta: pickle.dumps({key: names})}
    for part, count in counts.items():
        labels = [number % 10 for number in range(count)]
        data = np.stack([np.tile(pixels(label, 32).ravel(), 3) for label in labels])
        files[part] = pickle.dumps({"data": data, "labels" if name == "cifar10" else "fine_labels": labels})
    return files


def class_folders(folders: Sequence[str], count: int, pattern: str = "{folder}/{number:05d}.JPEG") -> dict[str, bytes]:
    """``count`` images in each folder; its number is the label."""
    return {
        pattern.format(folder=folder, number=number, label=label + 1): jpeg(label)
        for label, folder in enumerate(folders)
        for number in range(1, count + 1)
    }


def tiny_imagenet() -> dict[str, bytes]:
    """Three of the classes, two of which share their first name; val/ has one more, as a subset's annotations do."""
    wnids = ["n02012849", "n03126707", "n01443537"]
    train = {
        f"train/{wnid}/images/{wnid}_{number}.JPEG": jpeg(label, 64)
        for label, wnid in enumerate(sorted(wnids))
        for number in range(8)
    }
    boxes = {f"train/{wnid}/{wnid}_boxes.txt": b"" for wnid in wnids}
    val = [(f"val_{number}.JPEG", sorted([*wnids, "n09999999"])[number % 4]) for number in range(12)]
    images = {f"val/images/{name}": jpeg(sorted([*wnids, "n09999999"]).index(wnid), 64) for name, wnid in val}
    texts = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in wnids),
        "words.txt": "n01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn03126707\tcrane\nn00001740\tentity\n",
        "val/val_annotations.txt": "".join(f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in val),
    }
    files = {**train, **boxes, **images, "test/images/test_0.JPEG": jpeg(0, 64)}
    files |= {name: text.encode() for name, text in texts.items()}
    return {f"tiny-imagenet-200/{name}": data for name, data in files.items()}


def imagenette(name: str) -> bytes:
    folder = DATASETS[name].files[0].becomes
    wnids = list(DATASETS[name].class_names)
    files = class_folders([f"{folder}/train/{wnid}" for wnid in wnids], 4)
    files |= class_folders([f"{folder}/val/{wnid}" for wnid in wnids], 2)
    return tar({**files, f"{folder}/noisy_imagenette.csv": b"path,noisy_labels_0\n"})


def food101() -> bytes:
    names = ["apple_pie", "baby_back_ribs", "waffles"]
    parts = {
        part: {name: [f"{name}/{label}{number}" for number in numbers] for label, name in enumerate(names)}
        for part, numbers in (("train", range(8)), ("test", range(8, 12)))
    }
    files = {f"meta/{part}.json": json.dumps(lists).encode() for part, lists in parts.items()}
    files["meta/classes.txt"] = "\n".join(names).encode()
    for lists in parts.values():
        for label, name in enumerate(names):
            files |= {f"images/{path}.jpg": jpeg(label) for path in lists[name]}
    return tar({f"food-101/{name}": data for name, data in files.items()})


def caltech101() -> bytes:
    """A class of 33 images, one of 31 and one of 4, in an archive in an archive."""
    counts = {"BACKGROUND_Google": 3, "Faces_easy": 33, "accordion": 31, "yin_yang": 4}
    files: dict[str, bytes] = {"101_ObjectCategories/BACKGROUND_Google/tmp": b""}
    for label, (name, count) in enumerate(counts.items()):
        shades = (jpeg(max(0, label - 1)) for _ in range(count))
        files |= {f"101_ObjectCategories/{name}/image_{i:04d}.jpg": data for i, data in enumerate(shades, start=1)}
    inner = tar(files)
    return zipped(
        {
            "caltech-101/101_ObjectCategories.tar.gz": inner,
            "caltech-101/Annotations.tar": tar({"Annotations/x.mat": b""}, "w"),
            "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"",
        }
    )


def caltech256() -> bytes:
    folders = [f"256_ObjectCategories/{name}" for name in ("001.ak47", "002.american-flag-101", "257.clutter")]
    files = class_folders(folders, 62, "{folder}/{label:03d}_{number:04d}.jpg")
    files |= {"256_ObjectCategories/001.ak47/greg/001_0001.jpg": jpeg(9), "256_ObjectCategories/001.ak47/RENAME2": b""}
    return tar(files, "w")


def imagenet() -> tuple[bytes, bytes, bytes]:
    """Training images, validation images and the devkit: three classes, whose numbers are not in the wnids' order."""
    from scipy.io import savemat

    wnids = ["n01440764", "n02012849", "n03126707"]
    inner = {
        f"{wnid}.tar": tar({f"{wnid}_{number}.JPEG": jpeg(label) for number in range(8)}, "w")
        for label, wnid in enumerate(wnids)
    }
    synsets = [(1, wnids[2], "crane", 0), (2, wnids[0], "tench, Tinca tinca", 0), (3, wnids[1], "crane", 0)]
    synsets.append((4, "n00001740", "entity", 3))
    kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array([(i, wnid, words, "", n) for i, wnid, words, n in synsets], kind)})
    truth = [2, 3, 1, 1, 2, 3]
    val = {
        f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(wnids.index(synsets[place - 1][1]))
        for number, place in enumerate(truth, start=1)
    }
    folder = "ILSVRC2012_devkit_t12/data"
    devkit = {
        f"{folder}/meta.mat": meta.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": "".join(f"{place}\n" for place in truth).encode(),
    }
    return tar(inner, "w"), tar(val, "w"), tar(devkit)


def _gzipped(files: list[bytes]) -> list[bytes]:
    import gzip

    return [gzip.compress(data) for data in files]


# The files of an entry, in its order.
BUILDERS: dict[str, Callable[[str], list[bytes]]] = {
    "mnist": lambda _: _gzipped(mnist()),
    "fashion-mnist": lambda _: _gzipped(mnist()),
    "cifar10": lambda name: [tar({f"cifar-10-batches-py/{file}": data for file, data in cifar(name).items()})],
    "cifar100": lambda name: [tar({f"cifar-100-python/{file}": data for file, data in cifar(name).items()})],
    "tiny-imagenet": lambda _: [zipped(tiny_imagenet())],
    "imagenette": lambda name: [imagenette(name)],
    "imagenette320": lambda name: [imagenette(name)],
    "imagenette160": lambda name: [imagenette(name)],
    "imagewoof": lambda name: [imagenette(name)],
    "imagewoof320": lambda name: [imagenette(name)],
    "imagewoof160": lambda name: [imagenette(name)],
    "food101": lambda _: [food101()],
    "caltech101": lambda _: [caltech101()],
    "caltech256": lambda _: [caltech256()],
}
