"""What a data set's recipe reaches in some minutes of CPU time, against other models and settings in the same minutes.

Each entry trains in our loop, with as many epochs as its speed leaves it, its schedule shortened with them. One whose
first epoch takes longer is stopped when the time is over, and judged as it is then. What runs now is timed first.

ours             the recipe
timm             the recipe, with timm's ConvNeXt of the same depths and dims, with its initial weights, the paper's
resnet18         the recipe, with torchvision's ResNet-18 and what the recipe has for it: AdamW
64px             the model and settings of the recipes ``cifar10-64px`` and ``tiny-imagenet-64px``
40ep             those of the recipe ``tiny-imagenet-40ep``

    OMP_NUM_THREADS=1 python benchmarks/budget.py fashion-mnist --root DIR
    OMP_NUM_THREADS=1 python benchmarks/budget.py tiny-imagenet --root DIR --entries ours timm 64px 40ep
"""

import argparse
import itertools
import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from command import run_command
from peers import timm_convnext
from torch import nn

import convnext
from convnext.config import RunSettings
from convnext.data.datasets.load import load_splits
from convnext.data.loading.loader import batches
from convnext.devices import keep_freed_memory
from convnext.kernels import build
from convnext.models.summary import count_parameters
from convnext.runs import checkpoint
from convnext.training.interruption import InterruptedRunError, StopSignals
from convnext.training.resolve import cached, prepare
from convnext.training.trainer import Trainer

CHANGES: dict[str, dict[str, Any]] = {
    "ours": {},
    "timm": {"init": "paper", "layer_scale": 1e-6, "overlap": False},
    "resnet18": {"name": "resnet18", "overlap": False},
}
OTHERS = {
    "64px": {"fashion-mnist": "cifar10-64px", "tiny-imagenet": "tiny-imagenet-64px"},
    "40ep": {"tiny-imagenet": "tiny-imagenet-40ep"},
}
SPARE = 0.05  # of the time, for evaluations and what the timing missed
TIMED = 12  # steps


@dataclass(frozen=True)
class Row:
    """What an entry reached."""

    entry: str
    parameters: int
    epochs: float
    minutes: float
    top1: float
    macro_f1: float


def settings_of(entry: str, options: argparse.Namespace) -> RunSettings:
    """The entry's settings, before its epochs are known."""
    data = {"name": options.data, "root": options.root, "workers": 0}
    common = {"name": entry, "output": options.output, "precision": options.precision, "trackers": (), "data": data}
    if entry in CHANGES:
        return convnext.recipe(options.data, **common, model=CHANGES[entry])
    own = convnext.recipe(options.data).data
    changes: dict[str, Any] = {"data.val_fraction": own.val_fraction}
    return convnext.recipe(OTHERS[entry][options.data], **common, **changes)


def peer_of(entry: str, settings: RunSettings) -> nn.Module | None:
    """timm's ConvNeXt of these settings, for its entry; None where the settings' own model is meant."""
    if entry != "timm":
        return None
    splits, model = load_splits(settings.data), settings.model
    torch.manual_seed(settings.seed)
    sizes = model.depths or (), model.dims or (), model.patch_size or 4
    return timm_convnext(*sizes, len(splits.classes), splits.channels, model.stochastic_depth)


def seconds_an_epoch(entry: str, settings: RunSettings) -> float:
    """CPU time of one at the full size, by some steps on the data."""
    peer = peer_of(entry, settings)
    settings, splits, accelerator = prepare(settings, peer)
    trainer = Trainer(settings, cached(splits, settings.data, True), accelerator, peer)
    with batches(trainer.images, trainer.sampler, 0) as stream, StopSignals(trainer.folder) as signals:
        times = [time.process_time()]
        for batch in itertools.islice(stream, 2 + TIMED):
            trainer.step(batch, signals)
            times.append(time.process_time())
    return (times[-1] - times[2]) / TIMED * trainer.steps_per_epoch


def fit_to(entry: str, settings: RunSettings, seconds: float) -> RunSettings:
    """The settings with the epochs that the time allows, at least one, and a warm-up of the same fraction of them."""
    data = settings.data
    epoch = seconds_an_epoch(entry, settings.replace(**{"data.start_size": None}))
    if data.start_size:
        small = seconds_an_epoch(
            entry, settings.replace(**{"data.start_size": None, "data.train_size": data.start_size})
        )
        epoch = data.full_size_from * small + (1 - data.full_size_from) * epoch
    epochs = max(1, int(seconds * (1 - SPARE) / epoch))
    warmup = settings.optimizer.warmup_epochs / settings.epochs
    fitted: RunSettings = settings.replace(epochs=epochs, **{"optimizer.warmup_epochs": warmup * epochs})
    return fitted


def run(entry: str, options: argparse.Namespace) -> Row:
    """Train and evaluate."""
    budget = 60 * options.minutes
    settings = fit_to(entry, settings_of(entry, options), budget)
    started = time.process_time()
    # SIGPROF comes by CPU time. What a run does when it is told to stop is to save and to end.
    signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_PROF, budget)
    with suppress(InterruptedRunError):
        convnext.train(settings, model=peer_of(entry, settings))
    signal.setitimer(signal.ITIMER_PROF, 0)
    minutes = (time.process_time() - started) / 60
    path, peer = options.output / entry, peer_of(entry, settings)
    state = checkpoint.read_state(checkpoint.find(path))
    report = convnext.evaluate(path, workers=0, model=peer)
    parameters = count_parameters(checkpoint.load_model(checkpoint.find(path), peer)[0])
    epochs = state.step / (len(load_splits(settings.data).train) // settings.batch_size)
    return Row(entry, parameters, epochs, minutes, report.top1, report.macro_f1)


def main() -> None:
    """Train each entry, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["fashion-mnist", "tiny-imagenet"])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--entries", nargs="+", default=["ours", "timm"], choices=[*CHANGES, *OTHERS])
    parser.add_argument("--minutes", type=float, default=30, help="of CPU time for each entry's training")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--output", type=Path, help="a new folder; by default budget/DATA")
    options = parser.parse_args()
    for entry in options.entries:
        if entry in OTHERS and options.data not in OTHERS[entry]:
            parser.error(f"--entries: {entry} has settings for {' and '.join(OTHERS[entry])}, not for {options.data}")
    options.output = options.output or Path("budget") / options.data
    if options.output.exists():
        parser.error(f"--output: {options.output} is there already: name another, or remove it")
    if "timm" in options.entries and find_spec("timm") is None:
        parser.error("--entries: timm is not installed")
    if options.minutes <= 0:
        parser.error(f"--minutes: must be above 0, got {options.minutes:g}")
    options.entries = list(dict.fromkeys(options.entries))
    keep_freed_memory()
    load_splits(settings_of(options.entries[0], options).data)  # whatever it refuses, it refuses before all else
    options.output.mkdir(parents=True)
    print(f"{options.minutes:g} minutes of CPU time, {torch.get_num_threads()} threads, {options.precision}")
    print("entry parameters epochs CPU-minutes top-1 macro-F1")
    for entry in options.entries:
        # The peer computes as timm alone would: our kernels would serve its depthwise convolutions, too.
        os.environ["CONVNEXT_KERNELS"] = "0" if entry == "timm" else "1"
        build.forget()
        row = run(entry, options)
        print(f"{entry} {row.parameters:,} {row.epochs:.1f} {row.minutes:.1f} {row.top1:.4f} {row.macro_f1:.4f}")
        with (options.output / "rows.jsonl").open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    run_command(main)
