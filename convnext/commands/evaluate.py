"""``convnext evaluate``: a run over a split of its images, or two side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from convnext.commands.terminal import Flag, Table, parse, percent, print_table
from convnext.errors import SettingsError
from convnext.output import show

if TYPE_CHECKING:
    from convnext.comparison.two_runs import TwoRuns
    from convnext.evaluation.evaluator import SplitLogits, Subject
    from convnext.evaluation.metrics import Report

_SHOWN = 5  # pairs of confused classes, mistakes, classes that differ; the files have more


@dataclass(frozen=True)
class _Evaluate:
    """Measure a run's checkpoint on exactly the images of a split, and write report and pictures into its folder; two
    runs are compared, too."""

    run: tyro.conf.Positional[Path]
    """Folder of the run or of a checkpoint, or an exported file."""
    other: tyro.conf.Positional[Path | None] = None
    """Another, to compare it with on the same images."""
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
    calibration: Flag = False
    """Whether it is as often right as it is sure, before and after a temperature fitted on the validation split."""
    corruptions: tuple[str, ...] | None = None
    """Accuracy on corrupted images: names as gaussian_noise or fog, or none for all fifteen of ImageNet-C."""
    sizes: tuple[int, ...] | None = None
    """Accuracy with images of these sides in pixels."""
    limit: int | None = None
    """Images of --corruptions and --sizes, spread evenly over the split; None for all."""
    trust: Flag = False
    """Open a .pt2, which can run code that stands in it."""
    json: Flag = False
    """Print one JSON object in place of tables."""


def main(args: Sequence[str]) -> int:
    """Measure a run on its test split: accuracy, macro-F1, a report by class, pictures."""
    options = parse(_Evaluate, args, "evaluate")
    _check(options)
    paths = [path for path in (options.run, options.other) if path is not None]
    subjects = [_open(path, options) for path in paths]
    _check_subjects(subjects, options)
    measured = [_measure(subject, options) for subject in subjects]
    two = None
    if options.other is not None:
        from convnext.comparison.two_runs import compare_two

        two = compare_two(*zip(*((each.subject, each.predictions) for each in measured), strict=True))
    if options.json:
        print(json.dumps(_as_json(measured, two)))
        return 0
    for each in measured:
        if two is not None:
            show(f"{each.subject.path}:")
        _print(each)
    if two is not None:
        _print_two(measured, two)
    return 0


@dataclass(frozen=True)
class _Measured:
    """A run, or a file, and all that was asked of it: ``more`` is by the options' names, JSON-ready."""

    subject: "Subject"
    predictions: "SplitLogits"
    report: "Report"
    more: dict[str, Any]


def _check(options: _Evaluate) -> None:
    if options.limit is not None and options.corruptions is None and options.sizes is None:
        raise SettingsError("--limit is of --corruptions and --sizes: give one of them, or leave it out")
    if options.limit is not None and options.limit < 1:
        raise SettingsError(f"--limit: must be at least 1, got {options.limit}")
    if options.corruptions is not None:
        from convnext.evaluation.corruptions import check_names

        check_names(options.corruptions)


def _check_subjects(subjects: "Sequence[Subject]", options: _Evaluate) -> None:
    """Refuse what the options ask of subjects that cannot give it, before minutes go into the images."""
    from convnext.evaluation import deeper

    for subject in subjects:
        if options.calibration:
            deeper.check_calibration(subject)
        if options.sizes is not None:
            deeper.check_sizes(subject, options.sizes)
        if options.corruptions is not None:
            deeper.check_corruptions(subject)
    if len(subjects) == 2:
        from convnext.comparison.two_runs import check_two

        check_two(subjects)


def _measure(subject: "Subject", options: _Evaluate) -> _Measured:
    from convnext.evaluation import deeper
    from convnext.evaluation.corruptions import check_names
    from convnext.evaluation.evaluator import report_on

    predictions = subject.logits(subject.source, subject.info)
    report = report_on(subject, predictions)
    more: dict[str, Any] = {"mistakes": deeper.surest_mistakes(subject, predictions, _SHOWN)}
    if options.calibration:
        more["calibration"] = deeper.calibration_of(subject, predictions).as_dict()
    if options.sizes is not None:
        more["sizes"] = deeper.accuracy_by_size(subject, options.sizes, options.limit)
    if options.corruptions is not None:
        names = check_names(options.corruptions)
        more["corruptions"] = deeper.accuracy_by_corruption(subject, names, options.limit)
    return _Measured(subject, predictions, report, more)


def _open(run: Path, options: _Evaluate) -> "Subject":
    """A run, or what reads its images in threads: an exported file, or a run on a runtime."""
    from convnext.weights.files import checkpoint_folder, exported_file

    values = asdict(options)
    common = {name: values[name] for name in ("split", "root", "batch_size", "flip")}
    if file := exported_file(run):
        from convnext.inference.exported import open_exported

        for name, value in (("checkpoint", options.checkpoint), ("data.workers", options.workers)):
            if value is not None:
                raise SettingsError(f"--{name} is of a run, and {file} is an exported file: leave it out")
        return open_exported(file, **common, device=options.device, backend=options.backend, trust=options.trust)
    if options.backend not in (None, "eager"):
        from convnext.inference.exported import open_on
        from convnext.inference.runtimes import open_runtime

        folder = checkpoint_folder(run, options.checkpoint)
        if opened := open_runtime(folder, options.backend, options.device):
            if options.workers is not None:
                raise SettingsError(f"--data.workers is of PyTorch, and {opened.name} reads in threads: leave it out")
            return open_on(opened, folder, **common)
    from convnext.evaluation.evaluator import open_run

    return open_run(run, **common, checkpoint=options.checkpoint, device=options.device, workers=options.workers)


def _as_json(measured: Sequence[_Measured], two: "TwoRuns | None") -> dict[str, Any]:
    values = [each.report.as_dict() | each.more for each in measured]
    if two is None:
        return values[0]
    by_class = {name: asdict(pair) for name, pair in two.by_class.items()}
    runs = {
        name: {"run": str(each.subject.path)} | value for name, each, value in zip("ab", measured, values, strict=True)
    }
    return runs | {"pair": asdict(two.pair), "by_class": by_class}


def _print(measured: _Measured) -> None:
    report, more = measured.report, measured.more
    rows = Table("class", "precision", "recall", "F1", "images")
    for name, values in report.per_class.items():
        scores = (f"{values[key]:.4f}" for key in ("precision", "recall", "f1"))
        rows.add_row(name, *scores, f"{values['support']:,}")
    print_table(rows)
    if report.most_confused:
        confused = Table("confused most", "taken for", "images")
        for pair in report.most_confused[:_SHOWN]:
            confused.add_row(pair["true"], pair["predicted"], f"{pair['count']:,} of {pair['support']:,}")
        print_table(confused)
        surest = Table("surest mistakes", "is", "taken for", "probability")
        for mistake in more["mistakes"]:
            surest.add_row(*(mistake[key] for key in ("path", "true", "predicted")), percent(mistake["probability"]))
        print_table(surest)
    if "sizes" in more:
        sizes = Table("image size", "top-1")
        for size, top1 in more["sizes"].items():
            sizes.add_row(f"{size} px", percent(top1))
        print_table(sizes)
    if "corruptions" in more:
        _print_corruptions(measured)
    show(
        f"top-1 {100 * report.top1:.2f} %, top-5 {100 * report.top5:.2f} %, macro-F1 {report.macro_f1:.4f}, "
        f"loss {report.loss:.4f} over {report.count:,} images"
        + (f"; {report.unreadable} unreadable left out" if report.unreadable else "")
    )
    if calibration := more.get("calibration"):
        show(
            f"expected calibration error {100 * calibration['ece_before']:.2f} %; "
            f"{100 * calibration['ece_after']:.2f} % with the logits divided by {calibration['temperature']:.4g}, "
            f"fitted on {calibration['fitted_on']:,} validation images"
        )
    show(f"report, pictures and a table of all images: {measured.subject.folder}")


def _print_corruptions(measured: _Measured) -> None:
    accuracies = measured.more["corruptions"]
    table = Table("corruption", *(f"severity {severity}" for severity in range(1, 6)), "mean")
    for name, values in accuracies.items():
        table.add_row(name, *map(percent, values), percent(sum(values) / len(values)))
    print_table(table)
    everything = [value for values in accuracies.values() for value in values]
    size = measured.subject.info.image_size
    show(f"corrupted at {size} px: top-1 {percent(sum(everything) / len(everything))} over all of them")


def _print_two(measured: Sequence[_Measured], two: "TwoRuns") -> None:
    table = Table("class differs most", *(str(each.subject.path) for each in measured), "difference", "p", "images")
    recalls = [each.report.per_class for each in measured]
    for name, pair in list(two.by_class.items())[:_SHOWN]:
        accuracies = (percent(recall[name]["recall"]) for recall in recalls)
        table.add_row(name, *accuracies, f"{100 * pair.difference:+.2f}", _p(pair.p), f"{pair.images:,}")
    print_table(table)
    stands = sum(bool(pair.significant) for pair in two.by_class.values())
    show(f"classes that differ when all {len(two.by_class)} are looked at (Holm): {stands}")
    pair, names = two.pair, [str(each.subject.path) for each in measured]
    verdict = "differ" if pair.p < 1 - pair.confidence else "do not differ significantly"
    show(
        f"{names[0]} less {names[1]}: {100 * pair.difference:+.2f} points, {100 * pair.confidence:.0f} % interval "
        f"{100 * pair.low:+.2f} to {100 * pair.high:+.2f}, p {_p(pair.p)}: they {verdict} ({pair.claim})"
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
