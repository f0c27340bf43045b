"""The weights that the authors released, and what a setting that names weights means. Importing it is cheap: no torch.

Top-1 is what the authors published, not what was measured here.
"""

from dataclasses import dataclass

from convnext.errors import SettingsError, did_you_mean

AUTO = "auto"  # for ``model.weights``: released weights, where the recipe has use for them
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HOST = "https://dl.fbaipublicfiles.com/convnext/"


@dataclass(frozen=True)
class Weights:
    """A released checkpoint, trained on ImageNet.

    Attributes:
        url: where it is.
        classes: size of its classifier: the 1,000 classes of ImageNet-1k or the 21,841 of ImageNet-22k.
        image_size: side of the images of the last training, in pixels.
        top1: published by the authors, in percent, on the validation images of ImageNet-1k at ``image_size``; None for
            classifiers of ImageNet-22k.
        licence: SPDX identifier. CC-BY-NC-4.0 forbids commercial use.
        sha256: checksum, or its first digits; None where the authors published none.
        mean: channel means that the images were normalised with, on a scale of 0 to 1.
        std: channel standard deviations on that scale.
    """

    url: str
    classes: int
    image_size: int
    top1: float | None
    licence: str
    sha256: str | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def center_crop(self) -> float:
        """Share of the resized shorter side that is kept: 224 of 256 pixels, and from 384 pixels on all of it.

        From 384 pixels on the authors stretched the whole image to a square, which differs from a central crop where
        the image is not square: top-1 measured with a crop may differ a little from the published one.
        """
        return 0.875 if self.image_size < 384 else 1.0


def _v1(file: str, top1: float | None, image_size: int = 224) -> Weights:
    return Weights(f"{_HOST}convnext_{file}.pth", 1000 if top1 else 21841, image_size, top1, "MIT")


def _v2(file: str, top1: float, image_size: int = 224) -> Weights:
    return Weights(f"{_HOST}convnextv2/{file}_{image_size}_ema.pt", 1000, image_size, top1, "CC-BY-NC-4.0")


# Source: the tables of results in the README files of facebookresearch/ConvNeXt and facebookresearch/ConvNeXt-V2.
WEIGHTS: dict[str, dict[str, Weights]] = {
    "convnext_tiny": {
        "in1k": _v1("tiny_1k_224_ema", 82.1),
        "in22k": _v1("tiny_22k_224", None),
        "in22k_ft_in1k": _v1("tiny_22k_1k_224", 82.9),
        "in22k_ft_in1k_384": _v1("tiny_22k_1k_384", 84.1, 384),
    },
    "convnext_small": {
        "in1k": _v1("small_1k_224_ema", 83.1),
        "in22k": _v1("small_22k_224", None),
        "in22k_ft_in1k": _v1("small_22k_1k_224", 84.6),
        "in22k_ft_in1k_384": _v1("small_22k_1k_384", 85.8, 384),
    },
    "convnext_base": {
        "in1k": _v1("base_1k_224_ema", 83.8),
        "in1k_384": _v1("base_1k_384", 85.1, 384),
        "in22k": _v1("base_22k_224", None),
        "in22k_ft_in1k": _v1("base_22k_1k_224", 85.8),
        "in22k_ft_in1k_384": _v1("base_22k_1k_384", 86.8, 384),
    },
    "convnext_large": {
        "in1k": _v1("large_1k_224_ema", 84.3),
        "in1k_384": _v1("large_1k_384", 85.5, 384),
        "in22k": _v1("large_22k_224", None),
        "in22k_ft_in1k": _v1("large_22k_1k_224", 86.6),
        "in22k_ft_in1k_384": _v1("large_22k_1k_384", 87.5, 384),
    },
    "convnext_xlarge": {
        "in22k": _v1("xlarge_22k_224", None),
        "in22k_ft_in1k": _v1("xlarge_22k_1k_224_ema", 87.0),
        "in22k_ft_in1k_384": _v1("xlarge_22k_1k_384_ema", 87.8, 384),
    },
    "convnext_isotropic_small": {"in1k": _v1("iso_small_1k_224_ema", 78.7)},
    "convnext_isotropic_base": {"in1k": _v1("iso_base_1k_224_ema", 82.0)},
    "convnext_isotropic_large": {"in1k": _v1("iso_large_1k_224_ema", 82.6)},
    "convnextv2_atto": {"fcmae_ft_in1k": _v2("im1k/convnextv2_atto_1k", 76.7)},
    "convnextv2_femto": {"fcmae_ft_in1k": _v2("im1k/convnextv2_femto_1k", 78.5)},
    "convnextv2_pico": {"fcmae_ft_in1k": _v2("im1k/convnextv2_pico_1k", 80.3)},
    "convnextv2_nano": {
        "fcmae_ft_in1k": _v2("im1k/convnextv2_nano_1k", 81.9),
        "in22k_ft_in1k": _v2("im22k/convnextv2_nano_22k", 82.1),
        "in22k_ft_in1k_384": _v2("im22k/convnextv2_nano_22k", 83.4, 384),
    },
    "convnextv2_tiny": {
        "fcmae_ft_in1k": _v2("im1k/convnextv2_tiny_1k", 83.0),
        "in22k_ft_in1k": _v2("im22k/convnextv2_tiny_22k", 83.9),
        "in22k_ft_in1k_384": _v2("im22k/convnextv2_tiny_22k", 85.1, 384),
    },
    "convnextv2_base": {
        "fcmae_ft_in1k": _v2("im1k/convnextv2_base_1k", 84.9),
        "in22k_ft_in1k": _v2("im22k/convnextv2_base_22k", 86.8),
        "in22k_ft_in1k_384": _v2("im22k/convnextv2_base_22k", 87.7, 384),
    },
    "convnextv2_large": {
        "fcmae_ft_in1k": _v2("im1k/convnextv2_large_1k", 85.8),
        "in22k_ft_in1k": _v2("im22k/convnextv2_large_22k", 87.3),
        "in22k_ft_in1k_384": _v2("im22k/convnextv2_large_22k", 88.2, 384),
    },
    "convnextv2_huge": {
        "fcmae_ft_in1k": _v2("im1k/convnextv2_huge_1k", 86.3),
        "in22k_ft_in1k_384": _v2("im22k/convnextv2_huge_22k", 88.7, 384),
        "in22k_ft_in1k_512": _v2("im22k/convnextv2_huge_22k", 88.9, 512),
    },
}


def find(name: str, tag: str) -> Weights:
    """The weights released for a model, a name of `convnext.models.registry.VARIANTS`; SettingsError where there are
    none.

    The tag is the training: ``in1k``; ``in22k``, pre-training alone; ``in22k_ft_in1k``, fine-tuned after it;
    ``fcmae_ft_in1k`` (V2), fine-tuned after masked autoencoding. At the end it has the side in pixels if not 224.
    """
    if name not in WEIGHTS:
        raise SettingsError(f"no weights were released for a model {name!r}: {did_you_mean(name, WEIGHTS)}")
    if tag not in WEIGHTS[name]:
        raise SettingsError(f"{name} has no released weights {tag!r}: {did_you_mean(tag, WEIGHTS[name])}")
    return WEIGHTS[name][tag]


def permissive_tag(name: str) -> str | None:
    """The released weights of a model to start from unasked: their licence permits any use, and their training saw the
    most images; None where there are none."""
    tags = ("in22k_ft_in1k", "in1k")
    released = WEIGHTS.get(name, {})
    return next((tag for tag in tags if tag in released and released[tag].licence == "MIT"), None)


def top1_by_model(tag: str) -> dict[str, float]:
    """What the authors published of the weights with that tag, in percent, by name of ConvNeXt (V1)."""
    tagged = {name: weights[tag].top1 for name, weights in WEIGHTS.items() if tag in weights and "v2" not in name}
    return {name: top1 for name, top1 in tagged.items() if top1 is not None}


def is_weights_file(text: str) -> bool:
    """Whether ``model.weights`` means a file or folder: what is not a released tag of any model."""
    return text != AUTO and not any(text in tags for tags in WEIGHTS.values())
