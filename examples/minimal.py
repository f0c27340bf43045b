"""A whole training on public parts, to read and to change: python examples/minimal.py [EPOCHS].

ConvNeXt on scikit-learn's digits: data, model, AdamW with warm-up and cosine, a moving average of the weights,
evaluation, weights on disk. `convnext.train` adds what long runs need: exact resumption, several processes, logs.
"""

import sys
from pathlib import Path
from tempfile import gettempdir

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import convnext
from convnext.config import DataSettings, RunSettings
from convnext.data.batch_transforms import Normalize
from convnext.data.datasets.load import load_splits
from convnext.data.loading.loader import batches, training_images, training_sampler
from convnext.evaluation.evaluator import compute_logits
from convnext.evaluation.metrics import compute_report
from convnext.training.optimizers import WeightAverage, make_optimizers, set_learning_rate
from convnext.weights.model_info import ModelInfo


def main(epochs: int = 10) -> float:
    """Train for ``epochs``; returns the accuracy on the test split, from 0 to 1."""
    # A recipe is a set of settings; any of them can be changed.
    settings: RunSettings = convnext.recipe("digits", epochs=epochs, data={"workers": 0})
    data: DataSettings = settings.data
    splits = load_splits(data)

    torch.manual_seed(settings.seed)
    model: nn.Module = convnext.create_model(
        "convnext_tiny",  # the starting point: depths, dims and patch size below make it small
        num_classes=len(splits.classes),
        in_channels=splits.channels,
        depths=settings.model.depths,
        dims=settings.model.dims,
        patch_size=settings.model.patch_size,
        kernel_size=settings.model.kernel_size,
        init="torch",
        layer_scale=1.0,
    )
    average = WeightAverage(model, decay=0.99)
    (optimizer,) = make_optimizers(model, settings.optimizer)
    normalize = Normalize(splits.mean, splits.std)

    # Batches are uint8 and depend on (seed, epoch, image) alone: the same for any number of workers.
    images = training_images(settings, splits.train, splits.mean)
    sampler = training_sampler(settings, splits.train, rank=0, world_size=1)
    model.train()
    with batches(images, sampler, data.workers) as stream:
        for step, batch in enumerate(stream):
            set_learning_rate([optimizer], settings.learning_rate(step, sampler.steps_per_epoch))
            logits: Tensor = model(normalize(batch.images))
            loss = F.cross_entropy(logits, batch.targets, label_smoothing=settings.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            if (step + 1) % sampler.steps_per_epoch == 0:
                print(f"epoch {(step + 1) // sampler.steps_per_epoch}/{epochs}: loss {loss.item():.3f}")

    info = ModelInfo.of(settings, splits)
    result = compute_logits(average.module, splits.test, info, device=torch.device("cpu"), workers=0)
    report = compute_report(result.logits, result.targets, splits.classes)
    print(f"test top-1 {100 * report.top1:.2f} %, macro-F1 {report.macro_f1:.4f} on {report.count} images")
    weights = Path(gettempdir()) / "digits.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in average.module.state_dict().items()}, weights)
    print(f"weights: {weights}")
    return report.top1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
