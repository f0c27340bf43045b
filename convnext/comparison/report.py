"""The report of a comparison: ``report.json``, ``report.md`` with its pictures, and ``report.html`` with all inside."""

import json
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnext.comparison import tables
from convnext.comparison.cell import Cell
from convnext.comparison.conclusion import conclude
from convnext.comparison.measured import Measured, inference_speed, machine, measure
from convnext.comparison.pictures import Disagreement, disagreement
from convnext.comparison.results import Result, gather, names, pairwise
from convnext.comparison.statistics import Pair
from convnext.data.sources import ImageSource
from convnext.errors import UserError
from convnext.evaluation.calibration import reliability
from convnext.output import counted, escaped
from convnext.plots import comparison as plots
from convnext.plots.style import inline_svg, save_figure
from convnext.storage.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWN = 60  # differences; a picture of thousands has more pixels than can be drawn
_PAGE = Path(__file__).with_name("page")


@dataclass(frozen=True)
class Picture:
    """A plot of a report: its file for Markdown, itself for the page, and what it shows."""

    file: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading of a report, and the tables, plots and images under it."""

    title: str
    contents: Sequence[tables.Table | Picture | Disagreement]


@dataclass(frozen=True)
class Findings:
    """All numbers of a report.

    Attributes:
        cells: done or not, with what each contender is called and what is known of each run.
        results: of the contenders that have a whole repeat, best first.
        pairs: by the names of the two, the better one first.
        detectable: by the same names, the smallest difference that was likely to be significant.
        missing: a line for each thing that a reader would look for.
    """

    cells: Sequence[Cell]
    names: Sequence[str]
    measured: Sequence[Measured | None]
    results: Sequence[Result]
    pairs: Mapping[tuple[str, str], Pair]
    detectable: Mapping[tuple[str, str], float]
    missing: Sequence[str]

    @property
    def conclusion(self) -> list[str]:
        """In sentences."""
        return conclude(self.results, self.pairs, self.detectable)


def write_report(cells: Sequence[Cell], output: Path, missing: Sequence[str] = ()) -> None:
    """Write ``report.html``, ``report.md`` and ``report.json`` into a folder, which is made, on the cells that are
    done so far; plots lie beside them for Markdown.

    Args:
        cells: all of the comparison, done or not.
        output: the folder.
        missing: lines on what is missing besides cells.

    Raises:
        DataError: runs that were tested on different images.
        SettingsError: two runs of one contender with one seed and fold.
        UserError: the folder cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {output}: {error.strerror}; choose another --output") from None
    findings = find(cells, missing)
    speeds = {result.name: inference_speed(result.runs[0]) for result in findings.results}
    how = _how(findings)
    sections, lines = _sections(findings, speeds, output)
    page = {
        "title": f"{counted(len(set(findings.names)), 'contender')} on {findings.results[0].runs[0].settings.data.name}"
        if findings.results
        else counted(len(set(findings.names)), "contender"),
        "subtitle": f"{sum(run is not None for run in findings.measured)} of {counted(len(cells), 'training')} done",
        "conclusion": findings.conclusion,
        "missing": [*findings.missing, *lines],
        "sections": sections,
        "how": how,
    }
    write_text(
        output / "report.json",
        json.dumps(as_json(findings, speeds) | {"missing": page["missing"], "how": how}, indent=2),
    )
    write_text(output / "report.md", _rendered("report.md.jinja", page))
    write_text(output / "report.html", _rendered("report.html.jinja", page))


def find(cells: Sequence[Cell], missing: Sequence[str] = ()) -> Findings:
    """Measure the runs, and compare each contender with each other; errors are those of `write_report`."""
    lines, measured = list(missing), list[Measured | None]()
    called = names(cells)
    for name, cell in zip(called, cells, strict=True):
        run, problem = None, cell.problem or "not done yet"
        if cell.run is not None:
            try:
                run = measure(cell.run)
            except UserError as error:
                problem = str(error)
        if run is None:
            fold = "" if cell.fold is None else f", fold {cell.fold}"
            lines.append(f"{name}, seed {cell.seed}{fold}: {problem}")
        measured.append(run)
    results = gather(cells, measured)
    absent = sorted(set(called) - {result.name for result in results})
    if absent and results:
        lines.append(f"{', '.join(absent)}: no whole training yet, so not among the results")
    pairs, detectable = pairwise(results)
    return Findings(cells, called, measured, results, pairs, detectable, lines)


def as_json(findings: Findings, speeds: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of a report, ready for JSON; fractions are between 0 and 1, ``flops`` of one training."""
    return {
        "conclusion": " ".join(findings.conclusion),
        "cells": [
            {
                **{"contender": name, "model": cell.model, "settings": cell.settings, "seed": cell.seed},
                **{"fold": cell.fold, "run": cell.run and str(cell.run), "problem": cell.problem},
                **_numbers(run),
            }
            for name, cell, run in zip(findings.names, findings.cells, findings.measured, strict=True)
        ],
        "contenders": [
            {
                "name": result.name,
                "seeds": [repeat.seed for repeat in result.repeats],
                "inference_images_per_second": speeds[result.name],
                "recall": dict(zip(result.runs[0].info.classes, result.recall.tolist(), strict=True)),
            }
            | {
                name: spread and spread._asdict()
                for name, spread in {
                    **{key: result.over_seeds(lambda r, key=key: getattr(r.report, key)) for key in _REPORTED},  # type: ignore[misc]
                    **{key: result.over_seeds(lambda r, key=key: getattr(r, key)) for key in _CALIBRATION},  # type: ignore[misc]
                }.items()
            }
            for result in findings.results
        ],
        "pairs": [
            {
                **{"a": a, "b": b, "difference": pair.difference, "low": pair.low, "high": pair.high, "p": pair.p},
                **{"significant": pair.significant, "seeds": pair.seeds, "images": pair.images, "claim": pair.claim},
                "detectable": findings.detectable[a, b],
            }
            for (a, b), pair in findings.pairs.items()
        ],
    }


_REPORTED, _CALIBRATION = ("top1", "top5", "macro_f1", "loss"), ("ece", "ece_calibrated")


def _numbers(run: Measured | None) -> dict[str, Any]:
    """Of one run, all None where it is not done."""
    names = {**{key: f"report.{key}" for key in _REPORTED}, **{key: key for key in _CALIBRATION}}
    names |= {"seconds": "seconds", "flops": "training_flops", "forward_flops": "flops", "memory": "memory"}
    names |= {key: key for key in ("temperature", "parameters")} | {"images_per_second": "training_speed"}
    if run is None:
        return dict.fromkeys((*names, "points"))
    values = {
        key: getattr(run.report if name.startswith("report.") else run, name.removeprefix("report."))
        for key, name in names.items()
    }
    return values | {"points": [vars(point) for point in run.points]}


def _how(findings: Findings) -> dict[str, str]:
    """What it takes to do it again."""
    facts = {"made": time.strftime("%Y-%m-%d %H:%M %Z"), "measured on": machine()}
    if Path(sys.argv[0]).name in ("convnext", "__main__.py"):
        facts = {"command": shlex.join(["convnext", *sys.argv[1:]])} | facts
    if findings.results:
        runs = [run for result in findings.results for run in result.runs]
        data, splits = runs[0].settings.data, runs[0]
        facts["data"] = f"{data.name}{f' in {data.root}' if data.root else ''}, {len(splits.info.classes)} classes"
        facts["test images"] = f"{len(findings.results[0].repeats[0].correct):,}, digest {splits.fingerprint[:12]}"
        facts["recipe"] = ", ".join(sorted({run.settings.recipe or "none" for run in runs}))
        dates = [time.strftime("%Y-%m-%d %H:%M", time.localtime(run.finished)) for run in runs]
        facts["trained"] = min(dates) if min(dates) == max(dates) else f"{min(dates)} to {max(dates)}"
        for name in sorted({name for run in runs for name in run.versions}):
            facts[name] = ", ".join(sorted({run.versions.get(name, "not known") for run in runs}))
    return facts


def _sections(findings: Findings, speeds: Mapping[str, float], output: Path) -> tuple[list[Section], list[str]]:
    """What stands under the conclusion, and lines on what could not be shown."""
    every = tables.trainings(findings.cells, findings.names, findings.measured)
    if not findings.results:
        return [Section("Trainings", [every])], []
    best, *others = findings.results
    costs, settings = tables.cost(findings.results, speeds, machine()), tables.trained_with(findings.results)
    sections = [Section("Results", [tables.quality(findings.results), costs, settings, every])]
    if others:
        drawn = {
            names: pair for names, pair in findings.pairs.items() if len(findings.pairs) <= _DRAWN or best.name in names
        }
        intervals = [
            plots.Interval(a, b, pair.difference, pair.low, pair.high, bool(pair.significant))
            for (a, b), pair in drawn.items()
        ]
        caption = "Differences with 95 % intervals. Filled: significant after Holm's correction."
        caption += "" if len(drawn) == len(findings.pairs) else f" Of the pairs, those with {best.name}."
        picture = _picture(plots.differences(intervals), "differences", caption, output)
        sections.append(Section("Differences", [picture, tables.differences(findings.pairs, findings.detectable)]))
    if all(run.points for result in findings.results for run in result.runs):
        caption = (
            "Validation accuracy against what it cost: means over the runs; the band is from the worst to the best."
        )
        curves = plots.accuracy([_curve(result) for result in findings.results])
        sections.append(Section("Accuracy and cost", [_picture(curves, "accuracy", caption, output)]))
    caption = "How often predictions are right, by how sure they are; on the dotted line both agree."
    bins = plots.reliability([_reliability(result) for result in findings.results])
    sections.append(Section("Calibration", [_picture(bins, "reliability", caption, output)]))
    class_names, by_class = best.runs[0].info.classes, list[tables.Table | Picture | Disagreement]()
    for number, other in enumerate(others, 1):
        figure = plots.classes(class_names, best.recall - other.recall, best.name, other.name)
        caption = f"Accuracy by class: {best.name} less {other.name}."
        by_class.append(_picture(figure, f"classes-{number}", caption, output))
    sections.append(Section("Classes", [*by_class, tables.classes(findings.results)]))
    images, lines = list[tables.Table | Picture | Disagreement](), list[str]()
    try:
        sources: dict[int, ImageSource] = {}  # by fold: the same images for all
        for other in others:
            images += [disagreement(best, other, sources), disagreement(other, best, sources)]
    except UserError as error:
        lines.append(f"images that one gets right and the other wrong: {error}")
    return [*sections, *([Section("Images", images)] if images else [])], lines


def _picture(figure: "Figure", name: str, caption: str, output: Path) -> Picture:
    save_figure(figure, output / f"{name}.png")
    return Picture(f"{name}.png", inline_svg(figure, caption), caption)


def _curve(result: Result) -> plots.Curve:
    """Over the epochs that all runs validated."""
    by_run = [{point.epoch: point for point in run.points} for run in result.runs]
    epochs = sorted(set.intersection(*map(set, by_run)))

    def values(name: str) -> NDArray[np.float64]:
        return np.array([[getattr(points[epoch], name) for epoch in epochs] for points in by_run], dtype=float)

    top1 = values("top1")
    minutes, flops = values("seconds").mean(0) / 60, values("flops").mean(0)
    return plots.Curve(result.name, np.array(epochs, float), minutes, flops, top1.mean(0), top1.min(0), top1.max(0))


def _reliability(result: Result) -> plots.Reliability:
    """Of all seeds together."""
    correct = np.concatenate([repeat.correct for repeat in result.repeats])
    plain = np.concatenate([repeat.probabilities for repeat in result.repeats])
    scaled = [repeat.calibrated for repeat in result.repeats]
    each = [values for values in scaled if values is not None]
    calibrated = _bins(np.concatenate(each), correct) if len(each) == len(scaled) else None
    return plots.Reliability(result.name, _bins(plain, correct), calibrated)


def _bins(probabilities: NDArray[np.float64], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean confidence and accuracy of the bins that have images: ``(2, bins)``."""
    bins = reliability(probabilities, correct)
    return np.stack([bins.confidence, bins.accuracy])[:, bins.counts > 0]


def _rendered(template: str, page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    markdown = template.endswith(".md.jinja")
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=not markdown, undefined=StrictUndefined, trim_blocks=markdown
    )
    environment.filters["md"] = _markdown
    inside = {name: (_PAGE / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    if not markdown:
        from markupsafe import Markup

        inside = {name: Markup(text) for name, text in inside.items()}
    return environment.get_template(template).render(**page, **inside)


def _markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line, in a table too."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escaped(str(text))).replace("&", "&amp;").replace("<", "&lt;")
