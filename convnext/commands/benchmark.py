"""``convnext benchmark``: what a model computes in a second on every backend that is here."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from convnext.commands.terminal import Flag, Table, parse, percent, print_table
from convnext.output import counted, show

if TYPE_CHECKING:
    from convnext.inference.benchmark.benchmark import Row


@dataclass(frozen=True)
class _Benchmark:
    """Measure a model on every backend and in every precision that can be had here, beside the same model of timm and
    torchvision.

    Each entry computes in a process of its own, one at a time, from 8-bit images in memory to logits, with the same
    threads and freed memory kept. Leave the machine alone meanwhile. What cannot be had is named on standard error.
    """

    run: tyro.conf.Positional[str]
    """A model's name such as convnext_tiny, the folder of a run or of a checkpoint, or an exported file."""
    models: tuple[Literal["ours", "timm", "torchvision"], ...] = ("ours", "timm", "torchvision")
    """Whose: ours, and the same model of a library with random weights."""
    backends: tuple[Literal["eager", "compile", "onnxruntime", "openvino"], ...] = (
        *("eager", "compile"),
        *("onnxruntime", "openvino"),
    )
    """What computes."""
    precisions: tuple[Literal["fp32", "bf16", "int8"], ...] = ("fp32", "bf16", "int8")
    """Arithmetic; an exported file has its own."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Batch sizes to try for the most images a second; latency is always of batch 1."""
    seconds: float = 6.0
    """Seconds of measuring for each entry and batch size, over all rounds."""
    rounds: int = 3
    """Rounds of all entries, so that a slow minute is not one entry's alone."""
    threads: int | None = None
    """Threads of each entry; None takes PyTorch's."""
    images: int = 1000
    """Images of a run's test split for top-1; 0 for none, and int8 is then calibrated on random images."""
    checkpoint: Literal["last", "best"] | None = None
    """Which weights of a run; None takes the last, or of a run with patience the best."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of the images, in place of the one trained on."""
    image_size: int = 224
    """Side of the images of a model without weights, in pixels."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where PyTorch computes."""
    json: Flag = False
    """Print a JSON list in place of a table."""


def main(args: Sequence[str]) -> int:
    """Measure a model on every backend here, in every precision, beside timm's and torchvision's."""
    options = asdict(parse(_Benchmark, args, "benchmark"))
    as_json = options.pop("json")
    from convnext.inference.benchmark.benchmark import benchmark

    rows = benchmark(**options)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        _print(rows, options["threads"], options["device"])
    return 0


def _print(rows: "Sequence[Row]", threads: int | None, device: str) -> None:
    import torch

    from convnext.devices import pick_device
    from convnext.storage.measurements import cpu_name

    where = pick_device(device)
    name = torch.cuda.get_device_name() if where == "cuda" else cpu_name() + (" (mps)" if where == "mps" else "")
    show(f"{name}, {counted(threads or torch.get_num_threads(), 'thread')}")
    peers = [row.images_per_second for row in rows if (row.model, row.backend) == ("timm", "eager")]
    table = Table("model", "backend", "precision", "images/s", "batch", "p50", "p95", "top-1", "timm's best eager = 1")
    for row in rows:
        ratio = f"{row.images_per_second / max(peers):.2f}" if peers else ""
        latency = (f"{value:.1f} ms" for value in (row.p50_ms, row.p95_ms))
        table.add_row(
            *(row.model, row.backend, row.precision, f"{row.images_per_second:,.1f}", str(row.batch)),
            *(*latency, percent(row.top1), ratio),
        )
    print_table(table)
