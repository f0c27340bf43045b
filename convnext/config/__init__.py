"""Every setting of a run: its type, bounds, unit, default, and one sentence that is also its ``--help``."""

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from tyro.conf import Suppress

from convnext.config.base import Settings
from convnext.errors import SettingsError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]

MAX_PIXELS = 100_000_000  # of an image, by default: 0.7 GB in each process that reads


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


def _none(value: str | None) -> str | None:
    return None if value == "none" else value


def _name(value: str) -> str:
    if value in ("", "..") or Path(value).name != value:
        raise ValueError("must be a plain folder name")
    return value


class ModelSettings(Settings):
    """The architecture; what is left at None comes from the named variant.

    ResNets have patch_size and in_channels alone, Swin depths, dims, stochastic_depth too; the roadmap no kernel_size.
    """

    section: ClassVar[str] = "model."

    name: str = "convnext_tiny"
    """Variant to start from; `convnext models` lists them."""
    depths: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Blocks of each stage; another number of stages than the recipe's doubles its first dims from stage to stage."""
    dims: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Channels of each stage, as many as depths."""
    patch_size: Annotated[int, Field(ge=1, le=32)] | None = None
    """Kernel size and stride of the stem in pixels: 4 in the paper, 1 or 2 for images below 100 px."""
    kernel_size: Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)] | None = None
    """Side of the depthwise kernels; odd."""
    mlp_ratio: Annotated[int, Field(ge=1, le=16)] | None = None
    """Width of a block's hidden layer as a multiple of its channels."""
    in_channels: Positive | None = None
    """Channels of the images; None takes the data set's (3 colour, 1 grey)."""
    stochastic_depth: Fraction = 0.0
    """Skip probability of the last block (drop path); blocks before it rise linearly from 0."""
    layer_scale: float | Literal["variant"] | None = "variant"
    """Initial per-channel factor on each residual branch; None for no layer scale, 'variant' for the variant's own."""
    head_init_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the classifier's initial weights."""
    init: Literal["paper", "torch", "dirac"] = "paper"
    """Initial weights: the paper's (normal, 0.02); PyTorch's default, which learns faster in short runs; or that with
    convolutions of pool whose first filters pass on a channel each (airbench)."""
    grn: bool | None = None
    """Global response normalization in every block, as in ConvNeXt V2."""
    stem_norm: bool | None = None
    """LayerNorm behind the stem's convolution; the isotropic variants have none."""
    overlap: bool = False
    """Stem and downsampling see over the edges of their patches: kernels of 2 * stride - 1 (PVT v2)."""
    pool: bool = False
    """Stem and downsampling are 3x3 convolutions, max-pooling, batch norm and GELU: dearer, better for small images."""
    whitening: bool = False
    """A frozen 2x2 convolution, computed from the training images, whitens what the stem sees."""
    step: Annotated[int, Field(ge=0, le=15)] | None = None
    """Step of model 'roadmap', from 0 (ResNet-50) to 15 (ConvNeXt-T); `convnext roadmap` lists them."""
    weights: Annotated[str | None, AfterValidator(_none)] = None
    """Weights to start from: a released tag (`convnext models NAME`) or a run's folder, which bring their architecture,
    or a file; 'none' for random ones, 'auto' (recipe folder) for released ones where images are few."""
    weights_key: str | None = None
    """Which weights of a file that has several, such as state_dict; None takes the moving average (EMA) if there is."""

    def check_stages(self) -> None:
        """Refuse, with a SettingsError, depths and dims of different length, two ways to shrink a feature map, and
        initial weights for convolutions that the model has not."""
        if self.overlap and self.pool:
            raise SettingsError("model.overlap and model.pool are two ways to shrink the feature map: set one of them")
        if self.init == "dirac" and not self.pool:
            raise SettingsError("model.init dirac is for the convolutions of model.pool: set that too (--model.pool)")
        if self.depths is not None and self.dims is not None and len(self.depths) != len(self.dims):
            raise SettingsError(
                f"model.depths and model.dims need one entry a stage each: got {len(self.depths)} depths "
                f"{list(self.depths)} and {len(self.dims)} dims {list(self.dims)}"
            )


class DataSettings(Settings):
    """The images, their splits, and how they are read."""

    section: ClassVar[str] = "data."

    name: str = "folder"
    """Data set; `convnext datasets` lists them. 'folder' is any folder of class folders."""
    root: Path | None = None
    """Folder of the data set; downloaded into it where the data set can be and is not there yet."""
    image_size: Positive = 224
    """Side in pixels of the square images that the model sees."""
    train_size: Positive | None = None
    """Side of training images, where it is less than that of evaluation: crops of random areas show things larger, so
    that both see them at one size (Touvron et al. 2019), for less work. None for image_size."""
    start_size: Positive | None = None
    """Side at which training starts, to grow evenly to train_size (progressive resizing); None for train_size."""
    full_size_from: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the epochs after which a start_size has grown to train_size."""
    center_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the resized shorter side that evaluation keeps: 0.875 is ImageNet's custom at 224 px."""
    val_fraction: Fraction = 0.1
    """Share of the training set held out, stratified, to choose `best`; ignored where the folder has val/."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of all images held out, stratified, for the final test of a folder without test/ and val/."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Divide all images into so many stratified folds, one of them the test; None for the data set's own splits."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Number of the fold to test on, from 0, where there are folds."""
    mean: tuple[float, ...] | None = None
    """Channel means for normalisation, on a scale of 0 to 1; None takes the data set's own."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Channel standard deviations for normalisation; None takes the data set's own."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read images; None chooses by the data and the machine. The result does not depend on it."""
    cache: Literal["none", "disk"] = "none"
    """Keep the decoded images in one file in the cache folder, which all workers and processes share."""
    augment_on: Literal["auto", "workers", "device"] = "auto"
    """Where training images are augmented: by workers, one by one, or by the device, which then holds all of them,
    decoded, and does whole batches; auto: by a CUDA device, without a policy, if they fit into a quarter of its free
    memory, and by a CPU if they are known to be of one size and take 2 GB at most."""
    cache_image_size: Positive = 384
    """Shorter side in pixels at which the cache keeps images that are larger."""
    max_pixels: Positive = MAX_PIXELS
    """Pixels above which an image is unreadable, to save memory; a JPEG may be decoded at 1/2, 1/4 or 1/8 instead."""
    max_value: Annotated[float, Field(gt=0)] | None = None
    """Value that is white in grey images of more than 8 bits; None takes 65535 for 16 bits and 1 for floats."""
    exclude: Path | None = None
    """File with a path a line, relative to root, of images to leave out; `convnext datasets check --fix` writes it."""
    strict: bool = False
    """Stop at the first unreadable image instead of leaving it out and counting it."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Training images of an epoch: each once, or each class equally often; the epoch keeps its length."""

    @model_validator(mode="after")
    def _possible(self) -> "DataSettings":
        if self.train_size is not None and self.train_size > self.image_size:
            raise ValueError(f"data.train_size: {self.train_size} is more than data.image_size {self.image_size}")
        if self.first_size > self.last_size:
            name = "image_size" if self.train_size is None else "train_size"
            raise ValueError(f"data.start_size: {self.start_size} is more than data.{name} {self.last_size}")
        if self.fold and self.fold >= (self.folds or 1):
            raise ValueError(
                f"data.fold: {self.fold} is too much, since data.folds is {self.folds} and they count from 0"
            )
        return self

    @property
    def last_size(self) -> int:
        """Side of the training images of the last epoch."""
        return self.train_size or self.image_size

    @property
    def first_size(self) -> int:
        """Side of the training images of the first epoch."""
        return self.start_size or self.last_size

    @property
    def sizes(self) -> list[int]:
        """Sides of the images of the first epoch, the last one and the evaluation, the smallest first, each once."""
        return sorted({self.first_size, self.last_size, self.image_size})


class AugmentSettings(Settings):
    """Random changes to the training images."""

    section: ClassVar[str] = "augment."

    crop: Literal["none", "padding", "resized"] = "resized"
    """Random crop: of the padded image (small images), or of a random area resized (RandomResizedCrop)."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels of reflected border for crop 'padding'."""
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)
    """Range of the area kept by crop 'resized', as a share of the image."""
    flip: Probability | Literal["alternate"] = 0.5
    """Probability of a horizontal flip; alternate: each image is flipped in every other epoch (airbench)."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of random changes of brightness, contrast and saturation; 0 for none."""
    policy: Literal["none", "randaugment", "autoaugment", "trivialaugment"] = "none"
    """Augmentation policy."""
    autoaugment: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    """Data set whose learned AutoAugment policy is used."""
    randaugment_ops: Positive = 2
    """Operations per image of RandAugment."""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment's operations."""
    random_erasing: Probability = 0.0
    """Probability that a random rectangle is painted in the data set's mean colour."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of Mixup; 0 for none."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of CutMix; 0 for none. With mixup too, each batch draws one of the two."""
    mix_probability: Probability = 1.0
    """Probability that a batch (or an image) is mixed by Mixup or CutMix."""
    mix_by: Literal["batch", "element"] = "batch"
    """Whether Mixup and CutMix draw once for the whole batch or for every image by itself."""
    mix_until: Probability = 1.0
    """Share of the run's steps after which nothing is mixed any more."""
    repeats: Positive = 1
    """Differently augmented views of an image in a batch (repeated augmentation); epochs keep their length."""

    @model_validator(mode="after")
    def _range(self) -> "AugmentSettings":
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"augment.crop_scale: the smaller share comes first, got {list(self.crop_scale)}")
        return self


class LossSettings(Settings):
    """The cross-entropy that training minimizes."""

    section: ClassVar[str] = "loss."

    class_weights: Literal["none", "balanced"] | tuple[Annotated[float, Field(ge=0)], ...] = "none"
    """Weight of an image in the loss: balanced makes all classes count alike; or a number for each class."""


class OptimizerSettings(Settings):
    """The optimizer and its schedule; norms, biases and layer scale are not decayed."""

    section: ClassVar[str] = "optimizer."

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """Optimizer; muon is for the linear layers of the blocks, with AdamW for the rest, at one learning rate."""
    muon_filters: bool = False
    """Muon for the dense convolutions, too, each as a matrix with a row a filter."""
    muon_relative_lr: Annotated[float, Field(gt=0)] | None = None
    """Muon's own peak learning rate, as a fraction of the weights, scaled with batch_size as lr is: before each step
    they get a root mean square of 1 over the norms of their rows, and are not decayed (airbench). None for steps of the
    size of AdamW's."""
    lr: Annotated[float, Field(gt=0)] = 4e-3
    """Peak learning rate at the reference batch size; scaled linearly with batch_size (the log shows the result)."""
    reference_batch_size: Positive = 4096
    """Batch size that lr is meant for: 4096 in the paper."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end of the schedule, scaled like lr."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 20.0
    """Epochs of linear rise from 0 to the peak; a run of few epochs spends no more than a quarter of them on it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of convolution and linear weights: decoupled, but for sgd an L2 term in the gradient."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    momentum: Fraction = 0.9
    """Momentum (Nesterov) of SGD and Muon."""
    norm_bias_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the learning rate of the biases of norms (airbench)."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from each group of layers to the one before it, for fine-tuning; 1 for none."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient; larger ones are scaled down. None for no clipping."""


class RunSettings(Settings):
    """Train a ConvNeXt, report its accuracy on the test split, and keep everything in the run's folder."""

    recipe: Suppress[str] = ""
    """Recipe that the settings started from."""
    name: Annotated[str, AfterValidator(_name)] = "run"
    """Name of the run's folder; numbered where it exists."""
    output: Path = Path("runs")
    """Folder of the runs."""
    epochs: Positive = 300
    """Passes over the training set."""
    batch_size: Positive = 4096
    """Images of an optimizer step, over all processes and micro-batches; `auto`: --gradient-accumulation auto."""
    gradient_accumulation: Positive | Literal["auto"] = 1
    """Micro-batches of each batch, which save memory at the same gradient; auto: as few as fit into it."""
    label_smoothing: Fraction = 0.1
    """Share of each target spread evenly over all classes."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights, which is then what is evaluated; None for none. It warms up."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto: bf16 (else fp16) on CUDA, fp32 on MPS; on a CPU bf16 where that is measured
    to be 1.2 times as fast, and fp32 for runs of less than some minutes."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the first of CUDA, MPS, CPU that is there."""
    channels_last: bool = True
    """Keep images in NHWC order in memory, the faster one for ConvNeXt."""
    filters_from: Path | None = None
    """Run or weights file: depthwise filters are drawn with the covariance of its own (Trockman et al. 2022)."""
    proxy_from: Path | None = None
    """Run of a small network on the same images, which judges those of each batch: only the share that it finds hardest
    is trained on (Jordan 2024). None for all."""
    proxy_keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """That share, with --proxy-from; an epoch then takes as many times fewer steps."""
    freeze: Annotated[int, Field(ge=0)] = 0
    """Stages, from the input on and with the stem, whose weights stay as they are; for fine-tuning."""
    compile: bool = False
    """Compile the model with torch.compile: a minute for each size of training images, for faster steps on GPUs."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass: less memory for a third more time."""
    save_every_epochs: Positive = 1
    """Epochs from one checkpoint to the next; the last epoch and a better one are always saved."""
    save_every_steps: Positive | None = None
    """Optimizer steps from one checkpoint to the next, besides those at the ends of epochs; None for no such."""
    save_every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes from one checkpoint to the next, besides those at the ends of epochs; None for no such."""
    keep: Positive = 2
    """Newest checkpoints to keep, besides the best."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 10
    """Steps in a row that may be skipped because loss or gradient is not a finite number, before the run stops."""
    eval_every: Positive = 1
    """Epochs from one evaluation on the validation split to the next."""
    monitor: Literal["top1", "macro_f1", "loss"] = "top1"
    """Validation metric that chooses `best`, and that patience waits for."""
    patience: Positive | None = None
    """Epochs without a better validation after which the run stops; it is then tested and used by its best weights, not
    the last. None for no such end."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where to log besides metrics.jsonl: TensorBoard's event files in the run's folder, Weights & Biases."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, order and augmentation; the splits of the data are the same with every seed."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    @model_validator(mode="after")
    def _possible(self) -> "RunSettings":
        if self.filters_from is not None and self.model.weights is not None:
            raise ValueError(
                "filters_from is for random weights, and model.weights brings others: leave one of them out"
            )
        if self.data.sampler == self.loss.class_weights == "balanced":
            raise ValueError("data.sampler and loss.class_weights are both balanced, which counts rare classes twice")
        if self.gradient_accumulation != "auto" and self.gradient_accumulation > self.batch_size:
            raise ValueError(
                f"gradient_accumulation: {self.gradient_accumulation} micro-batches of a batch of {self.batch_size} "
                f"would be empty"
            )
        return self

    @property
    def warmup_epochs(self) -> float:
        """Epochs of warm-up of this run."""
        return min(self.optimizer.warmup_epochs, self.epochs / 4)

    @property
    def drawn_batch_size(self) -> int:
        """Images among which those of an optimizer step are chosen: with `proxy_from` more than `batch_size`."""
        return self.batch_size if self.proxy_from is None else round(self.batch_size / self.proxy_keep)

    @property
    def peak_lr(self) -> float:
        """Learning rate at this batch size (linear scaling, Goyal et al. 2017)."""
        return self.optimizer.lr * self.batch_size / self.optimizer.reference_batch_size

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate at optimizer step ``step`` from 0: linear warm-up, then the schedule of the settings.

        Cosine (Loshchilov & Hutter 2017) and linear end at ``min_lr``.
        """
        warmup_steps = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup_steps:
            return self.peak_lr * (step + 1) / warmup_steps
        # min_lr is scaled with the batch size as lr is, and never above the peak.
        minimum = min(self.optimizer.min_lr / self.optimizer.lr, 1.0) * self.peak_lr
        progress = (step - warmup_steps) / max(1, self.epochs * steps_per_epoch - warmup_steps)
        left = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
        return minimum + (self.peak_lr - minimum) * left[self.optimizer.schedule]


Settings.whole = RunSettings
