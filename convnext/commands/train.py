"""``convnext train``: a recipe, with any setting changed."""

import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from convnext import recipes
from convnext.commands.options import automatic_batch, given_settings, option_words
from convnext.commands.terminal import Flag, parse
from convnext.config import RunSettings
from convnext.errors import SettingsError
from convnext.output import counted, filled, is_first_process, say, show
from convnext.storage.downloads import offline

if TYPE_CHECKING:
    from convnext.training.train import Run


@dataclass(frozen=True)
class _Train:
    settings: Annotated[RunSettings, tyro.conf.arg(name="")]
    resume: Flag = False
    """Go on with the newest run of this name, from its last checkpoint; or, where a run's folder follows, with that run
    under its own settings, without a recipe."""
    base: Annotated[Path | None, tyro.conf.arg(name="settings")] = None
    """A run's settings.json, or a part of one, whose values take the place of the recipe's."""
    dry_run: Flag = False
    """Print settings, model, splits, steps and an estimate of the time; write nothing."""


def main(args: Sequence[str]) -> int:
    """Train a ConvNeXt: `convnext train RECIPE`, with any setting changed by an option."""
    args, run = _take_run(automatic_batch(args))
    if run is not None:
        parsed = _settings_of_run(args, run)
    elif (name := _recipe_name(args)) is not None:
        parsed = _settings_of_recipe(args, name)
    else:
        return _explain(args)
    settings = parsed.settings
    if parsed.dry_run:
        from convnext.training.plan import plan

        settings, lines = plan(settings)
        if is_first_process():
            print(settings.model_dump_json(indent=2))
            show(*lines)
        return 0
    from convnext.training.train import train

    start = time.perf_counter()
    trained = train(settings, resume=run or parsed.resume)
    if is_first_process():
        show(*_summary(trained, time.perf_counter() - start))
    return 0


def _take_run(args: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments with a lone ``--resume``, and the run whose folder follows it, if one does."""
    words = option_words(args, "--resume")
    for index, (name, value) in enumerate(pairwise(words)):
        if name == "--resume" and not value.startswith("-"):
            if value in recipes.names() and not Path(value).exists():
                raise SettingsError(f"put {value} first: convnext train {value} --resume")
            from convnext.runs.folder import run_to_resume

            return [*words[: index + 1], *words[index + 2 :]], run_to_resume(Path(value))
    return words, None


def _settings_of_run(args: Sequence[str], run: Path) -> _Train:
    from convnext.runs.folder import settings_to_resume

    if "--settings" in option_words(args, "--settings"):
        raise SettingsError("--settings is for a new run, and --resume RUN goes on under the run's own: leave one out")
    recipe = _first_word(args)
    default = _Train(settings_to_resume(run, recipe))
    description = f"Go on with {run}. Its settings:"
    return parse(_Train, args[1:] if recipe else args, f"train --resume {run}", default, description)


def _settings_of_recipe(args: Sequence[str], name: str) -> _Train:
    recipe = recipes.get(name)
    options = args[1:] if args and args[0] == name else args
    description = recipe.docs + "\n\nEvery setting of the run can be changed:"
    values = {key: value for key, value in _settings_file(args).items() if key not in ("recipe", "output")}
    default = _Train(recipe.settings.replace(**values))
    parsed = parse(_Train, options, f"train {recipe.name}", default, description)
    given = recipes.given_names(values) | given_settings(options)
    settings = parsed.settings
    complete = recipes.complete
    if parsed.resume:
        from convnext.runs.resumption import complete
    with offline() if parsed.dry_run else nullcontext():
        settings, notes = complete(settings, given)
    say(*notes)
    return replace(parsed, settings=settings)


def _recipe_name(args: Sequence[str]) -> str | None:
    if args and args[0] in ("-h", "--help"):
        return None
    return _first_word(args) or _settings_file(args).get("recipe")


def _first_word(args: Sequence[str]) -> str | None:
    return args[0] if args and not args[0].startswith("-") else None


def _explain(args: Sequence[str]) -> int:
    """The usage, where that was asked for; else a SettingsError, since no recipe was named."""
    if args and args[0] in ("-h", "--help"):
        print("usage: convnext train RECIPE [--resume] [--dry-run] [--settings FILE] [settings]")
        print("       convnext train --resume RUN [settings]\n")
        print(filled("Recipes (`convnext train RECIPE --help` shows every setting, with the recipe's values):"))
        width = max(map(len, recipes.names()))
        for name in recipes.names():
            print(filled(recipes.get(name).summary, f"  {name:<{width}} ", " " * (width + 3)))
        return 0
    hint = next((f"put {name} first" for name in args if name in recipes.names()), "such as: convnext train digits")
    hint += "; to go on with a run, give its folder after --resume" if "--resume" in args else ""
    raise SettingsError(f"which recipe? known: {', '.join(recipes.names())}; {hint}")


def _settings_file(args: Sequence[str]) -> dict[str, Any]:
    """The values of the file that ``--settings`` names, which the other options are to change; none without it."""
    words = option_words(args, "--settings")
    path = next((Path(value) for name, value in pairwise(words) if name == "--settings"), None)
    if path is None:
        return {}
    from convnext.runs.checkpoint import read_settings

    return read_settings(path / "settings.json" if path.is_dir() else path)


def numbers_beside(run: "Run") -> list[str]:
    """Lines with the numbers that others and we reached with the recipe, beside the run's where its images are those of
    the recipe."""
    if run.settings.recipe not in recipes.names():  # of a program, or of another version
        return []
    recipe = recipes.get(run.settings.recipe)
    data, own = recipe.settings.data, run.settings.data
    if (data.name, data.folds) != (own.name, own.folds):
        from convnext.data.datasets.catalogue import DATASETS

        images = DATASETS[data.name].title if data.name in DATASETS else data.name
        others = f"on {images}{', with its own test images' * (data.name == own.name)}, and not comparable to this run"
        lines = [f"Measured  {measured}; {others}" for measured in recipe.measured]
        if recipe.published is not None:
            lines.append(f"Published {recipe.published.text()} (by {recipe.published.source}); {others}")
        return lines
    lines = [f"Measured  {measured}" for measured in recipe.measured]
    if (published := recipe.published) is not None:
        model = run.settings.model.name
        line = f"Published {published.text(model)} (by {published.source}; not run here)"
        if (theirs := published.values.get(model)) is not None:
            top1 = published.metric == "top-1"
            ours = 100 * run.report.top1 if top1 else run.report.macro_f1
            digits, unit = (2, " %") if top1 else (4, "")
            line += f"; this run {ours:.{digits}f}{unit}, {abs(ours - theirs):.{digits}f} "
            line += "above" if ours >= theirs else "below"
        lines.append(line)
    return lines


def _summary(run: "Run", seconds: float) -> list[str]:
    """What the run reached, in how many ``seconds`` since it was started or resumed, and what to do with it."""
    from convnext.data.progress import duration
    from convnext.runs.folder import read_metrics
    from convnext.weights.files import usual_checkpoint

    report, weights = run.report, usual_checkpoint(run.path)
    training = sum(epoch["seconds"] for epoch in read_metrics(run.path))  # of all epochs, without their evaluations
    before = f" since it was resumed; all epochs {duration(training)}" if training > seconds else ""
    files = ", ".join(sorted(path.name + "/" * path.is_dir() for path in run.path.iterdir() if path.name[0] != "."))
    left_out = [
        f"Left out  {counted(len(run.unreadable), 'unreadable image')}, such as: {line}" for line in run.unreadable[:1]
    ]
    return [
        f"Reached   top-1 {100 * report.top1:.2f} %, top-5 {100 * report.top5:.2f} %, macro-F1 {report.macro_f1:.4f}, "
        f"loss {report.loss:.4f} on {report.count:,} {run.test_name} images ({weights} weights)",
        f"Took      {duration(seconds)}{before}",
        *numbers_beside(run),
        f"Files     {run.path}: {files}",
        f"Next      convnext predict {shlex.quote(str(run.path))} IMAGE",
        *left_out,
    ]
