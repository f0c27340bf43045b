"""``convnext export``: a trained model as a file that other programs run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convnext.commands.terminal import Flag, parse, percent
from convnext.errors import SettingsError
from convnext.output import say, show


@dataclass(frozen=True)
class _Export:
    """Write a model as one file that other programs run, and compare it with its source before it gets its name."""

    run: tyro.conf.Positional[str]
    """Folder of the run or of a checkpoint, or a model with released weights such as convnext_tiny:in1k."""
    format: str = "onnx"
    """onnx, openvino, torch (torch.export), or hub: a folder that timm, transformers and the Hugging Face Hub take."""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """Arithmetic of the file; int8 is calibrated on the run's training images."""
    output: Path | None = None
    """The new file; None for one in the run's folder."""
    checkpoint: Literal["last", "best"] | None = None
    """Which weights; None takes the last, or of a run with patience the best."""
    include_preprocessing: Flag = False
    """Take uint8 images of any size (N, H, W, C), RGB or grey as the model's, and resize, crop and normalise them
    inside."""
    max_drop: float = 0.3
    """Points of top-1 on the test split that a precision below fp32 may cost; inf takes any, also without labels."""
    push: str | None = None
    """Repository of the Hugging Face Hub, owner/name, that gets the folder of --format hub; a new one is private."""
    public: Flag = False
    """Let everybody see a repository that --push makes."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of the images to compare on, in place of the one trained on; with or without class folders."""


def main(args: Sequence[str]) -> int:
    """Write a model as ONNX, OpenVINO or torch.export, compared with its source before it is called done."""
    options = parse(_Export, args, "export")
    from convnext.inference.export.export import export
    from convnext.storage import hub

    if options.public and options.push is None:
        raise SettingsError("--public is of the repository that --push makes: give --push owner/name, or leave it out")
    if options.push is not None:
        if options.format != "hub":
            raise SettingsError(f"--push is for --format hub, and the format is {options.format}")
        hub.check_push(options.push)
    settings = asdict(options)
    for name in ("push", "public"):
        settings.pop(name)
    result = export(**settings)
    compared = result.comparison
    say(
        f"compared with its source on {compared.images} {result.compared_on}: logits differ by up to "
        f"{compared.difference:.2g} (the largest is {compared.scale:.3g}), the class of {compared.other_class}"
    )
    if result.products is not None:
        say("int8: {} of {} products".format(*result.products))
    if result.float_layers:
        say(f"left in float to keep the accuracy: {', '.join(result.float_layers)}")
    if result.top1 is not None:
        say(f"top-1 on the whole test split: {percent(result.top1)}, the source's {percent(result.source_top1)}")
    elif result.unmeasured:
        say(f"accuracy not measured: {result.unmeasured}")
    if options.push is not None:
        say(f"pushed: {hub.push(result.path, options.push, private=not options.public)}")
    show(str(result.path))
    return 0
