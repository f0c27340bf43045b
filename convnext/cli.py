"""The command ``convnext``: parse, call the library, print. Results go to standard output, the rest to standard error.

Exit status: 0 done, 1 our mistake, 2 the user's, 128 + n stopped by signal n.
"""

import contextlib
import errno
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from convnext import __version__, recipes
from convnext.config import RunSettings
from convnext.errors import SettingsError, UserError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from convnext.training.run import Run

T = TypeVar("T")
_USERS_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


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
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object in place of tables."""


@dataclass(frozen=True)
class _Predict:
    """Name what is in images: the most probable classes of each, in percent."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
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


@dataclass(frozen=True)
class _Recipes:
    """List the recipes, or show one with all its settings."""

    name: tyro.conf.Positional[str | None] = None
    """Recipe to show."""


@dataclass(frozen=True)
class _Models:
    """List the model variants with their parameters."""


@dataclass(frozen=True)
class _Datasets:
    """List the data sets, or write one as a folder of PNG files."""

    name: tyro.conf.Positional[str | None] = None
    """Data set to write."""
    to_folder: Path | None = None
    """New folder to write: train/<class>/*.png and test/<class>/*.png."""
    root: Annotated[Path | None, tyro.conf.arg(name="data.root")] = None
    """Folder of the data set, where it needs one."""


def train(args: Sequence[str]) -> int:
    """Train a ConvNeXt: `convnext train RECIPE`, with any setting changed by an option."""
    if not args or args[0].startswith("-"):
        usage = "usage: convnext train RECIPE [--resume] [settings]\n\nRecipes"
        usage += " (`convnext train RECIPE --help` shows every setting, with the recipe's values):\n"
        usage += "".join(f"  {name:<12} {recipes.get(name).summary}\n" for name in recipes.names())
        if args and args[0] in ("-h", "--help"):
            print(usage, end="")
            return 0
        raise SettingsError(f"which recipe? known: {', '.join(recipes.names())}; such as: convnext train digits")
    recipe = recipes.get(args[0])
    description = recipe.docs + "\n\nEvery setting of the run can be changed:"
    options = _parse(_Train, args[1:], f"train {recipe.name}", _Train(recipe.settings), description)
    import convnext

    run = convnext.train(options.settings, resume=options.resume)
    _print_summary(run, recipe)
    return 0


def evaluate(args: Sequence[str]) -> int:
    """Measure a run on its test split: accuracy, macro-F1, a report by class, pictures."""
    options = _parse(_Evaluate, args, "evaluate")
    import convnext

    report = convnext.evaluate(
        options.run,
        split=options.split,
        which=options.checkpoint,
        root=options.root,
        batch_size=options.batch_size,
        device=options.device,
        workers=options.workers,
    )
    if options.json:
        print(json.dumps(report.as_dict()))
        return 0
    table = _table("class", "precision", "recall", "F1", "images")
    for name, values in report.per_class.items():
        shares = (f"{values[key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(name, *shares, f"{values['support']:,}")
    _print(table)
    print(
        f"top-1 {100 * report.top1:.2f} %, top-5 {100 * report.top5:.2f} %, macro-F1 {report.macro_f1:.4f}, "
        f"loss {report.loss:.4f} over {report.count:,} images"
        + (f"; {report.unreadable} unreadable left out" if report.unreadable else "")
    )
    print(f"report and pictures: {options.run}")
    return 0


def predict(args: Sequence[str]) -> int:
    """Name what is in images, with percentages."""
    options = _parse(_Predict, args, "predict")
    if options.top_k < 1:
        raise SettingsError(f"top-k: must be at least 1, got {options.top_k}")
    from convnext.inference.files import expand
    from convnext.inference.predictor import Predictor

    predictor = Predictor.load(options.run, options.checkpoint, options.device)
    paths = expand(options.images)
    sources = (io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path for path in paths)
    rows, failures = [], 0
    for path, result in zip(paths, predictor.batches(sources, options.top_k), strict=True):
        if isinstance(result, Exception):
            failures += 1
            print(f"convnext: {result}", file=sys.stderr)
        else:
            rows.append((path, result))
    if options.json:
        keys = ("class", "probability")
        found = [{"path": path, "predictions": [dict(zip(keys, p, strict=True)) for p in best]} for path, best in rows]
        print(json.dumps(found))
    elif rows:
        table = _table("image", *(f"{rank}." for rank in range(1, len(rows[0][1]) + 1)))
        for path, best in rows:
            table.add_row(path, *(f"{name} {100 * share:.1f} %" for name, share in best))
        _print(table)
    return 2 if failures else 0


def show_recipes(args: Sequence[str]) -> int:
    """List the recipes, or show one with all its settings."""
    options = _parse(_Recipes, args, "recipes")
    if options.name is not None:
        recipe = recipes.get(options.name)
        print(f"{recipe.docs}\n\nReaches: {_expected(recipe)}\n\nSettings:")
        print(recipe.settings.model_dump_json(indent=2, exclude={"recipe"}))
        return 0
    table = _table("recipe", "what it is", "reaches")
    for recipe in map(recipes.get, recipes.names()):
        table.add_row(recipe.name, recipe.summary, _expected(recipe))
    _print(table)
    return 0


def show_models(args: Sequence[str]) -> int:
    """List the model variants with their parameters."""
    _parse(_Models, args, "models")
    import torch

    from convnext.models.registry import VARIANTS, create_model

    table = _table("model", "depths", "dims", "parameters", "source")
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in create_model(name).parameters())
        table.add_row(
            name,
            " ".join(map(str, variant.depths)),
            " ".join(map(str, variant.dims)),
            f"{parameters:,}",
            variant.source,
        )
    _print(table)
    return 0


def show_datasets(args: Sequence[str]) -> int:
    """List the data sets, or write one as a folder of images."""
    options = _parse(_Datasets, args, "datasets")
    from convnext.config import DataSettings
    from convnext.data.catalog import DATASETS, export_folder, load_splits

    if options.name is None:
        table = _table("data set", "what it is")
        for name, dataset in DATASETS.items():
            table.add_row(name, dataset.summary)
        _print(table)
        return 0
    if options.name not in DATASETS:
        raise SettingsError(f"no data set is called {options.name!r}: {did_you_mean(options.name, DATASETS)}")
    if options.to_folder is None:
        print(f"{options.name}: {DATASETS[options.name].summary}")
        return 0
    export_folder(load_splits(DataSettings(name=options.name, root=options.root)), options.to_folder)
    print(options.to_folder)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "recipes": show_recipes,
    "models": show_models,
    "datasets": show_datasets,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    if debug:
        args.remove("--debug")
    try:
        return _dispatch(args)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("convnext: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        return _report_error(error, args)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        commands = "".join(f"  {name:<10} {_first_line(command)}\n" for name, command in COMMANDS.items())
        print(
            f"usage: convnext COMMAND [options]\n\nTrain, measure and use a ConvNeXt.\n\n{commands}\n"
            f"`convnext COMMAND --help` explains a command; --debug shows the traceback of an error; --version."
        )
        return 0 if args else 2
    if args[0] == "--version":
        print(f"convnext {__version__}")
        return 0
    if args[0] not in COMMANDS:
        raise SettingsError(f"no command is called {args[0]!r}: {did_you_mean(args[0], COMMANDS)}")
    return COMMANDS[args[0]](args[1:])


def _report_error(error: Exception, args: list[str]) -> int:
    if isinstance(error, UserError):
        print(f"convnext: {error}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.errno in _USERS_ERRNO:
        print(f"convnext: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    if type(error).__name__ == "InterruptedRunError":
        again = [*args, *([] if "--resume" in args else ["--resume"])]
        print(f"convnext: {error}\ngo on with: convnext {' '.join(again)}", file=sys.stderr)
        return 128 + int(getattr(error, "signal", 0))
    print(
        f"convnext: internal error: {type(error).__name__}: {error}\nrun the command again with --debug for the "
        f"traceback, and please report it",
        file=sys.stderr,
    )
    return 1


def _parse(
    kind: type[T], args: Sequence[str], command: str, default: T | None = None, description: str | None = None
) -> T:
    """Parse a command's options; a mistake becomes one line.

    Raises:
        SettingsError: unknown option or bad value.
        SystemExit: ``--help`` was printed.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: T = tyro.cli(kind, args=list(args), prog=f"convnext {command}", description=description, **options)
            return parsed
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise SettingsError(f"{_one_line(said.getvalue())} (see convnext {command} --help)") from None


def _one_line(box: str) -> str:
    """The first paragraph of tyro's framed message, with its suggestions."""
    lines = [re.sub(r"[─╭╮╰╯│]", "", line).strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = " ".join(line or "\n" for line in lines).split("\n")
    text = paragraphs[0].strip().rstrip(".")
    suggested = [name for part in paragraphs[1:] if "meant" in part for name in re.findall(r"--[\w.-]+", part)]
    return f"{text}: did you mean {' or '.join(dict.fromkeys(suggested[:3]))}?" if suggested else text


def _print_summary(run: "Run", recipe: recipes.Recipe) -> None:
    report, part = run.report, run.test_name
    print(
        f"Reached   top-1 {100 * report.top1:.2f} %, top-5 {100 * report.top5:.2f} %, macro-F1 {report.macro_f1:.4f}, "
        f"loss {report.loss:.4f} on {report.count:,} {part} images (last weights)\n"
        f"Promised  {_expected(recipe)}\n"
        f"Files     {run.path}: settings.json, metrics.jsonl, checkpoints/, curves.png, {part}_report.json, "
        f"{part}_confusion_matrix.png, {part}_predictions.png\n"
        f"Next      convnext predict {run.path} IMAGE"
    )
    if run.unreadable:
        print(f"Left out  {len(run.unreadable)} unreadable images, such as: {run.unreadable[0]}")


def _expected(recipe: recipes.Recipe) -> str:
    expected = recipe.expected
    return expected.text + (f" ({expected.source})" if expected.source else "")


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").splitlines()[0]


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, highlight=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # piped: a line a row
    console.print(table)
