"""Prediction by ours against timm's model in eager PyTorch, from 8-bit images in memory to logits in memory.

Each contestant has a process of its own, and they take turns: see ``turns.py``. All have the same random images.

ours        the backend that `Predictor`, `evaluate` and validation compute with.
timm        channels_last, freed memory kept, inference mode; bf16 by autocast.
timm-cast   the same in bf16 by weights that are cast.

    python benchmarks/prediction.py
    python benchmarks/prediction.py --model convnext_tiny --size 224 --batch 16 --precision bf16
"""

import argparse
import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from command import positive, run_command
from record import where
from torch import nn
from turns import Make, Step, Times, take_turns

from convnext.config import ModelSettings
from convnext.data.batch_transforms import Normalize
from convnext.devices import autocast_of, keep_freed_memory, pick_device
from convnext.evaluation.evaluator import prepare_model
from convnext.inference.backends import Images
from convnext.inference.backends.eager import EagerBackend
from convnext.models import libraries, registry
from convnext.weights.model_info import ModelInfo

CLASSES = 1000
TURN = 0.5  # seconds


@dataclass(frozen=True)
class Case:
    """What predicts: the ``model`` by its name, the images' ``size`` in pixels, the ``batch``, ``precision`` (fp32 or
    bf16) and ``device`` (cpu, cuda or mps)."""

    model: str = "convnext_tiny"
    size: int = 224
    batch: int = 1
    precision: str = "fp32"
    device: str = "cpu"


def info_of(case: Case) -> ModelInfo:
    """How the model wants its images."""
    settings = registry.resolve(ModelSettings(name=case.model))
    classes = tuple(map(str, range(CLASSES)))
    return ModelInfo(
        model=settings, classes=classes, mean=(0.5,) * 3, std=(0.25,) * 3, image_size=case.size, center_crop=1
    )


def images_of(case: Case) -> Images:
    """Random images ``(N, H, W, C)``."""
    return np.random.default_rng(0).integers(0, 256, (case.batch, case.size, case.size, 3), np.uint8)


def our_prediction(case: Case, _: ExitStack) -> Step:
    """The backend's."""
    keep_freed_memory()
    info, images = info_of(case), images_of(case)
    model = prepare_model(registry.build(info.model, CLASSES), info)
    backend = EagerBackend(model, info, case.device, case.precision)
    backend.use_kernels(compile=True)
    return lambda: backend(images)


def timm_prediction(cast: bool, case: Case, _: ExitStack) -> Step:
    """A loop's around timm's model."""
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    info, images, device = info_of(case), images_of(case), torch.device(case.device)
    model: nn.Module = libraries.builder("timm", case.model)(CLASSES, 3)
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    normalize = Normalize(info.mean, info.std).to(device)
    autocast = autocast_of("fp32" if cast else case.precision, device)
    dtype = torch.bfloat16 if cast else torch.float32
    model = model.to(dtype)

    @torch.inference_mode()
    def step() -> object:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)  # channels last, as it lies in memory
        with autocast():
            return model(normalize(pixels).to(dtype)).float().cpu().numpy()

    return step


def measure(case: Case, rounds: int = 15, seconds: float = math.inf) -> dict[str, Times]:
    """What a prediction of a batch takes ours and timm's.

    Raises:
        ContestantError: one failed.
    """
    contestants: dict[str, Make] = {
        "ours": partial(our_prediction, case),
        "timm": partial(timm_prediction, False, case),
    }
    if case.precision == "bf16":
        contestants["timm-cast"] = partial(timm_prediction, True, case)
    return take_turns(contestants, case.device, rounds, seconds, TURN)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=Case.model)
    parser.add_argument("--size", type=positive, default=Case.size, help="height and width of the images in pixels")
    parser.add_argument("--batch", type=positive, default=Case.batch)
    parser.add_argument("--precision", default=Case.precision, choices=["fp32", "bf16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--rounds", type=positive, default=15)
    options = parser.parse_args()
    device = pick_device(options.device)
    case = Case(options.model, options.size, options.batch, options.precision, device)
    times = measure(case, options.rounds)
    print(f"{case.model}, batch {case.batch} at {case.size} px in {case.precision}; {where(device)}")
    for name, each in times.items():
        rate = f"{case.batch / each.median:9,.1f} images/s"
        print(f"{name:<9} {1e3 * each.median:9,.2f} ms {rate}  {each.median / times['ours'].median:.3f} of ours")


if __name__ == "__main__":
    run_command(main)
