"""``convnext train``, ``evaluate`` and ``predict``."""

import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from convnext import recipes
from convnext.commands.terminal import parse, print_table, table
from convnext.config import RunSettings
from convnext.errors import SettingsError

if TYPE_CHECKING:
    from convnext.runs.folder import Run


@dataclass(frozen=True)
class _Train:
    settings: Annotated[RunSettings, tyro.conf.arg(name="")]
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the newest run of this name, from its last checkpoint."""


@dataclass(frozen=True)
class _Evaluate:
    """Measure a run's checkpoint on exactly the images of a split, and write report and pictures into its folder."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    split: Literal["test", "val", "train"] = "test"
    """Which of the run's images."""
    checkpoint: Literal["last", "best"] = "last"
    """Which weights; 'best' was chosen on the validation split."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of the data, where it has moved since the training."""
    batch_size: int = 256
    """Images at a time."""
    workers: Annotated[int | None, tyro.conf.arg(name="data.workers")] = None
    """Processes that read images; None chooses."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    flip: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Average each image's logits with those of its mirror image, at twice the cost."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object in place of tables."""


@dataclass(frozen=True)
class _Predict:
    """Name what is in images: the most probable classes of each, in percent."""

    run: tyro.conf.Positional[str]
    """Folder of the run, or a model with released weights such as convnext_tiny:in1k."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders, glob patterns, or - for an image on standard input."""
    top_k: int = 5
    """Classes to show for each image."""
    checkpoint: Literal["last", "best"] = "last"
    """Which weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON list in place of tables."""


def train(args: Sequence[str]) -> int:
    """Train a ConvNeXt: `convnext train RECIPE`, with any setting changed by an option."""
    if not args or args[0].startswith("-"):
        usage = "usage: convnext train RECIPE [--resume] [settings]\n\nRecipes"
        usage += " (`convnext train RECIPE --help` shows every setting, with the recipe's values):\n"
        width = max(map(len, recipes.names()))
        usage += "".join(f"  {name:<{width}} {recipes.get(name).summary}\n" for name in recipes.names())
        if args and args[0] in ("-h", "--help"):
            print(usage, end="")
            return 0
        hint = next((f"put {name} first" for name in args if name in recipes.names()), "such as: convnext train digits")
        raise SettingsError(f"which recipe? known: {', '.join(recipes.names())}; {hint}")
    recipe = recipes.get(args[0])
    description = recipe.docs + "\n\nEvery setting of the run can be changed:"
    changes = _automatic_batch(args[1:])
    options = parse(_Train, changes, f"train {recipe.name}", _Train(recipe.settings), description)
    import convnext

    settings, notes = recipes.complete(recipe.settings, options.settings)
    for note in notes:
        print(note, file=sys.stderr)
    run = convnext.train(settings, resume=options.resume)
    if os.environ.get("RANK", "0") == "0":  # torchrun's number of this process
        _print_summary(run, recipe)
    return 0


def _automatic_batch(args: Sequence[str]) -> list[str]:
    """``--batch-size auto`` in other words: the recipe's batch, in as few parts as fit into memory."""
    names = ("--batch-size", "--batch_size")
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith(names) else [arg])]
    for place, (name, value) in enumerate(pairwise(words)):
        if name in names and value == "auto":
            words[place] = "--accumulate"
    return words


def evaluate(args: Sequence[str]) -> int:
    """Measure a run on its test split: accuracy, macro-F1, a report by class, pictures."""
    options = parse(_Evaluate, args, "evaluate")
    import convnext

    report = convnext.evaluate(
        options.run,
        split=options.split,
        which=options.checkpoint,
        root=options.root,
        batch_size=options.batch_size,
        device=options.device,
        workers=options.workers,
        flip=options.flip,
    )
    if options.json:
        print(json.dumps(report.as_dict()))
        return 0
    rows = table("class", "precision", "recall", "F1", "images")
    for name, values in report.per_class.items():
        shares = (f"{values[key]:.4f}" for key in ("precision", "recall", "f1"))
        rows.add_row(name, *shares, f"{values['support']:,}")
    print_table(rows)
    print(
        f"top-1 {100 * report.top1:.2f} %, top-5 {100 * report.top5:.2f} %, macro-F1 {report.macro_f1:.4f}, "
        f"loss {report.loss:.4f} over {report.count:,} images"
        + (f"; {report.unreadable} unreadable left out" if report.unreadable else "")
    )
    print(f"report and pictures: {options.run}")
    return 0


def predict(args: Sequence[str]) -> int:
    """Name what is in images, with percentages."""
    options = parse(_Predict, args, "predict")
    if options.top_k < 1:
        raise SettingsError(f"top-k: must be at least 1, got {options.top_k}")
    if not options.images:
        raise SettingsError("which images? give files, folders, patterns, or - for standard input")
    from convnext.inference.files import expand
    from convnext.inference.predictor import Predictor

    predictor = Predictor.load(options.run, options.checkpoint, options.device)
    paths = expand(options.images)
    sources = (io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path for path in paths)
    found, failures = [], 0
    for path, result in zip(paths, predictor.batches(sources, options.top_k), strict=True):
        if isinstance(result, Exception):
            failures += 1
            print(f"convnext: {result}", file=sys.stderr)
        else:
            found.append((path, result))
    if options.json:
        keys = ("class", "probability")
        objects = [
            {"path": path, "predictions": [dict(zip(keys, p, strict=True)) for p in best]} for path, best in found
        ]
        print(json.dumps(objects))
    elif found:
        rows = table("image", *(f"{rank}." for rank in range(1, len(found[0][1]) + 1)))
        for path, best in found:
            rows.add_row(path, *(f"{name} {100 * share:.1f} %" for name, share in best))
        print_table(rows)
    return 2 if failures else 0


def _known(run: "Run", recipe: recipes.Recipe) -> str:
    """Lines with the numbers that others and we reached with the recipe, beside the run's."""
    lines = [f"Measured  {measured}\n" for measured in recipe.measured]
    if (published := recipe.published) is not None:
        model = run.settings.model.name
        line = f"Published {published.text(model)} (by {published.source}; not run here)"
        if (theirs := published.values.get(model)) is not None:
            top1 = published.metric == "top-1"
            ours = 100 * run.report.top1 if top1 else run.report.macro_f1
            digits, unit = (2, " %") if top1 else (4, "")
            line += f"; this run {ours:.{digits}f}{unit}, {abs(ours - theirs):.{digits}f} "
            line += "above" if ours >= theirs else "below"
        lines.append(line + "\n")
    return "".join(lines)


def _print_summary(run: "Run", recipe: recipes.Recipe) -> None:
    report = run.report
    files = ", ".join(sorted(path.name + "/" * path.is_dir() for path in run.path.iterdir() if path.name[0] != "."))
    print(
        f"Reached   top-1 {100 * report.top1:.2f} %, top-5 {100 * report.top5:.2f} %, macro-F1 {report.macro_f1:.4f}, "
        f"loss {report.loss:.4f} on {report.count:,} {run.test_name} images (last weights)\n"
        + _known(run, recipe)
        + f"Files     {run.path}: {files}\n"
        f"Next      convnext predict {shlex.quote(str(run.path))} IMAGE"
    )
    if run.unreadable:
        print(f"Left out  {len(run.unreadable)} unreadable images, such as: {run.unreadable[0]}")
