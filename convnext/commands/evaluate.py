"""``convnext evaluate``: a run over a split of its images."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from convnext.commands.terminal import Flag, Table, parse, print_table
from convnext.errors import SettingsError
from convnext.output import show

if TYPE_CHECKING:
    from convnext.evaluation.metrics import Report

_CONFUSED_SHOWN = 5  # pairs of classes; the report has more


@dataclass(frozen=True)
class _Evaluate:
    """Measure a run's checkpoint on exactly the images of a split, and write report and pictures into its folder."""

    run: tyro.conf.Positional[Path]
    """Folder of the run or of a checkpoint, or an exported file."""
    split: Literal["test", "val", "train", "all"] | None = None
    """Which of the run's images; None for test, or for all of a --data.root of class folders without splits."""
    checkpoint: Literal["last", "best"] | None = None
    """Which weights; None takes the last, or of a run with patience the best, chosen on the validation split."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of other images, in class folders of all or some of the run's classes; or of the run's own, moved."""
    batch_size: int = 256
    """Images at a time."""
    workers: Annotated[int | None, tyro.conf.arg(name="data.workers")] = None
    """Processes that read images; None chooses."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    backend: Literal["eager", "onnxruntime", "openvino", "auto"] | None = None
    """What computes a run: PyTorch (eager, None), or on the CPU in fp32 a runtime, or the fastest (auto)."""
    flip: Flag = False
    """Average each image's logits with those of its mirror image, at twice the cost."""
    trust: Flag = False
    """Open a .pt2, which can run code that stands in it."""
    json: Flag = False
    """Print one JSON object in place of tables."""


def main(args: Sequence[str]) -> int:
    """Measure a run on its test split: accuracy, macro-F1, a report by class, pictures."""
    options = asdict(parse(_Evaluate, args, "evaluate"))
    path, trust, as_json = (options.pop(name) for name in ("run", "trust", "json"))
    report = _evaluate(path, trust, options)
    if as_json:
        print(json.dumps(report.as_dict()))
        return 0
    rows = Table("class", "precision", "recall", "F1", "images")
    for name, values in report.per_class.items():
        scores = (f"{values[key]:.4f}" for key in ("precision", "recall", "f1"))
        rows.add_row(name, *scores, f"{values['support']:,}")
    print_table(rows)
    if report.most_confused:
        confused = Table("confused most", "taken for", "images")
        for pair in report.most_confused[:_CONFUSED_SHOWN]:
            confused.add_row(pair["true"], pair["predicted"], f"{pair['count']:,} of {pair['support']:,}")
        print_table(confused)
    show(
        f"top-1 {100 * report.top1:.2f} %, top-5 {100 * report.top5:.2f} %, macro-F1 {report.macro_f1:.4f}, "
        f"loss {report.loss:.4f} over {report.count:,} images"
        + (f"; {report.unreadable} unreadable left out" if report.unreadable else "")
    )
    show(f"report, pictures and a table of all images: {path.parent if path.is_file() else path}")
    return 0


def _evaluate(run: Path, trust: bool, options: dict[str, Any]) -> "Report":
    """The report of a run, or of what reads its images in threads: an exported file, or a run on a runtime."""
    from convnext.weights.files import checkpoint_folder, exported_file

    if file := exported_file(run):
        from convnext.inference.exported import evaluate_file

        for name, option in (("checkpoint", "checkpoint"), ("workers", "data.workers")):
            if options.pop(name) is not None:
                raise SettingsError(f"--{option} is of a run, and {file} is an exported file: leave it out")
        return evaluate_file(file, **options, trust=trust)
    backend = options.pop("backend")
    if backend not in (None, "eager"):
        from convnext.inference.exported import evaluate_on
        from convnext.inference.runtimes import open_runtime

        folder = checkpoint_folder(run, options["checkpoint"])
        if opened := open_runtime(folder, backend, options["device"]):
            if options["workers"] is not None:
                raise SettingsError(f"--data.workers is of PyTorch, and {opened.name} reads in threads: leave it out")
            given = {name: options[name] for name in ("split", "root", "batch_size", "flip")}
            return evaluate_on(opened, folder, **given)
    from convnext.evaluation.evaluator import evaluate

    return evaluate(run, **options)
