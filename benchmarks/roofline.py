"""Where a step's time goes on a CPU, against what the machine could do: a row a part of the step.

First the machine's own peaks: the kernels' product of matrices and PyTorch's, and memory copied. Then the trainer's
step under PyTorch's profiler. A part cannot be faster than its operations at the peak of its precision, nor than its
bytes (inputs, results and gradients once each) at the memory's: its bound is the longer of the two, and the share how
much of its time that is. A part that takes no time is left out. Written to ``results/roofline/<machine>/``; leave the
machine alone meanwhile, a minute each.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --precision bf16
    python benchmarks/roofline.py --large --precision bf16    # ConvNeXt-T at 224 px
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from command import run_command
from record import short_name, this_machine, uncommitted, write_run
from run_json import ROOT, Number
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from training import Case, our_step

from convnext import kernels
from convnext.kernels.build import library
from convnext.kernels.products import in_order

STEPS = 6
KERNEL = 49  # taps of a depthwise convolution
# A part of the step: the profiler's events that are it, without the underscore of a private class.
EVENTS = {
    "depthwise_forward": ("DepthwiseConv2d",),
    "depthwise_backward": ("DepthwiseConv2dBackward",),
    "mlp_forward": ("Mlp",),
    "mlp_backward": ("MlpBackward",),
    "optimizer": ("Optimizer.step#AdamW.step",),
    "stem_downsampling_head": ("aten::convolution", "ConvolutionBackward0", "aten::linear", "AddmmBackward0"),
    "other_norms": ("aten::layer_norm", "NativeLayerNormBackward0", "LayerNorm2d", "LayerNorm2dBackward"),
}


def best(run: Callable[[], object], seconds: float = 0.2) -> float:
    """Seconds that it takes at its fastest."""
    run()
    fastest, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def peaks() -> dict[str, float]:
    """GFLOP/s of products by precision, of all threads, and GB/s of a copy in memory."""
    numbers = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        m, n, k = 256, 1024, 256
        a, b, c = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.empty(torch.get_num_threads(), m, n)
        loaded = library()
        if loaded is not None and (product := loaded.products.get(dtype)):
            right = in_order(b, product)
            seconds = best(lambda: loaded.multiply(product, a, right, c))  # noqa: B023
            numbers[f"product_{precision}_gflops"] = 2e-9 * k * c.numel() / seconds
        x, y = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        numbers[f"matmul_{precision}_gflops"] = 2e-9 * 2048**3 / best(lambda: x @ y)  # noqa: B023
    source, target = torch.zeros(1 << 27, dtype=torch.uint8), torch.empty(1 << 27, dtype=torch.uint8)
    return numbers | {"copy_gbs": 2e-9 * len(source) / best(lambda: target.copy_(source))}


def work(case: Case) -> dict[str, tuple[float, float]]:
    """GFLOP and GB of the parts that can be counted, of one step."""
    flop = dict.fromkeys(("depthwise", "mlp"), 0.0)
    values, parameters = 0.0, 0.0
    for stage, (depth, dim) in enumerate(zip(case.depths, case.dims, strict=True)):
        rows = case.batch * (case.size // case.patch // 2**stage) ** 2
        flop["depthwise"] += 2e-9 * depth * rows * dim * KERNEL
        flop["mlp"] += 2e-9 * depth * rows * 8 * dim**2
        values += 1e-9 * depth * rows * dim
        parameters += 1e-9 * depth * (8 * dim**2 + KERNEL * dim) + (4e-9 * dim * case.dims[stage - 1] if stage else 0)
    size = 2 if case.precision == "bf16" else 4  # bytes of a branch's value; what is added up has 4
    return {
        "depthwise_forward": (flop["depthwise"], (4 + size) * values),
        "depthwise_backward": (2 * flop["depthwise"], (4 + size + 4) * values),
        "mlp_forward": (flop["mlp"], (size + 4 + 4) * values),
        "mlp_backward": (2 * flop["mlp"], (size + 4 + size) * values),
        "optimizer": (0.0, 7 * 4 * parameters),  # weights, gradients and two moments read, all but gradients written
    }


def callers(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The events that it is inside of."""
    parent = event.cpu_parent
    while parent is not None:
        yield parent
        parent = parent.cpu_parent


def profiled(case: Case) -> dict[str, float]:
    """Milliseconds of each part of a step; the rest is what none of the events is."""
    with ExitStack() as stack:
        step = our_step(case, stack)
        whole = best(step, 2.0)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(STEPS):
                step()
    part_of = {name: part for part, names in EVENTS.items() for name in names}
    parts = dict.fromkeys(EVENTS, 0.0)
    for event in profiler.events() or ():
        part = part_of.get(event.name.lstrip("_"))
        # What is called inside of another part is in that one's time: a convolution in a depthwise one's forward.
        if part and not any(parent.name.lstrip("_") in part_of for parent in callers(event)):
            parts[part] += event.cpu_time_total / STEPS / 1e3
    return parts | {"rest": max(0.0, 1e3 * whole - sum(parts.values())), "step": 1e3 * whole}


def numbers_of(case: Case) -> dict[str, Number]:
    """Of a ``run.json``: peaks, and of each part its time, work and the share of its bound."""
    peak, parts = peaks(), profiled(case)
    fastest = max(value for name, value in peak.items() if name.endswith(f"{case.precision}_gflops"))
    numbers: dict[str, Number] = {name: round(value, 1) for name, value in peak.items()}
    for part, milliseconds in parts.items():
        if milliseconds or part not in EVENTS:
            numbers[f"{part}_ms"] = round(milliseconds, 2)
    for part, (gflop, gigabytes) in work(case).items():
        bound = 1e3 * max(gflop / fastest, gigabytes / peak["copy_gbs"])
        numbers[f"{part}_gflop"], numbers[f"{part}_gb"] = round(gflop, 2), round(gigabytes, 3)
        if parts[part]:
            numbers[f"{part}_bound"] = round(bound / parts[part], 3)
    return numbers


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="ConvNeXt-T at 224 px in place of the small model")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--machine", help="the folder's name; by default made of the CPU's")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "roofline")
    options = parser.parse_args()
    if options.output == ROOT / "results" / "roofline" and (problem := uncommitted()):
        parser.error(problem)
    shape = ((3, 3, 9, 3), (96, 192, 384, 768), 4, 224, 16) if options.large else ()
    case = Case(**vars(Case(*shape)) | {"precision": options.precision})
    started = time.monotonic()
    numbers = numbers_of(case)
    name = "ConvNeXt-T" if options.large else "depths 2 4 2, dims 64 128 256, patch 2"
    write_run(
        options.output / (options.machine or short_name(this_machine(False))) / f"step-{case.size}px-{case.precision}",
        numbers,
        data=f"random images in memory, {case.size} px; {name}, batch {case.batch}, {case.precision}",
        seconds=time.monotonic() - started,
        libraries=("torch",),
        note=f"{torch.get_num_threads()} threads; {kernels.describe()}",
        uses_gpu=False,
    )
    for key, value in numbers.items():
        print(f"{key.replace('_', ' '):<28} {value:,}")


if __name__ == "__main__":
    run_command(main)
