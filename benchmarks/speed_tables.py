"""The tables of benchmarks: a row a measurement, or an entry of one."""

import json
from statistics import mean
from typing import Any

from run_json import ROOT, Link, TableError, grid, numbers_of, runs, source_of


def speed(link: Link) -> str:
    """Every measurement of speed, by machine."""
    rows = []
    for where, run in runs().items():
        if where.startswith("speed/"):
            ratio = numbers_of(run, lambda key: key.startswith("ratio_")).replace("ratio ", "")
            rest = numbers_of(run, lambda key: not key.startswith("ratio_"))
            name = where.rpartition("/")[2].replace("-", " ")
            rows.append(
                [str(run.machine), link(name, where), run.data.replace("; ", ", "), ratio, rest, source_of(run)]
            )
    header = ["machine", "what", "data and model", "our speed over the peer's", "measured", "date, commit"]
    return grid(header, rows)


def inference(_: Link) -> str:
    """What ``benchmarks/inference.py`` measured: by machine and model, the most images a second first."""
    rows = []
    for where, run in runs().items():
        if not where.startswith("inference/"):
            continue
        ending = "_images_per_second"
        rates = {key.removesuffix(ending): run.values(key)[0] for key in run.numbers if key.endswith(ending)}
        eager = [rate for entry, rate in rates.items() if entry.startswith("timm_eager_")]
        for entry in sorted(rates, key=lambda entry: -rates[entry]):
            batch, p50, p95 = (run.values(f"{entry}_{key}")[0] for key in ("batch", "p50_ms", "p95_ms"))
            peers = [run.values("timm_eager_fp32_images_per_second"), [max(eager)] if eager else []]
            ratios = [f"{rates[entry] / peer[0]:.2f}" if peer else "" for peer in peers]
            rows.append([str(run.machine), run.data.partition("; ")[2], *entry.split("_")])
            rows[-1] += [f"{rates[entry]:,.1f} ({batch})", f"{p50:,.1f} ms", f"{p95:,.1f} ms", *ratios]
            rows[-1] += [source_of(run)]
    header = ["machine", "model", "of", "backend", "precision", "images/s (batch)", "p50", "p95"]
    return grid([*header, "over timm's eager fp32", "over timm's best eager", "date, commit"], rows)


def roofline(_: Link) -> str:
    """What ``benchmarks/roofline.py`` measured: the parts of each step that took time, the longest first."""
    rows = []
    for run in (run for where, run in runs().items() if where.startswith("roofline/")):
        times = {key.removesuffix("_ms"): run.values(key)[0] for key in run.numbers if key.endswith("_ms")}
        whole = times.pop("step")
        for part in sorted(filter(times.get, times), key=lambda part: -times[part]):
            bound = "".join(f"{value:.0%}" for value in run.values(f"{part}_bound"))
            work = (",".join(f"{value:,}" for value in run.values(f"{part}_{key}")) for key in ("gflop", "gb"))
            rows.append([str(run.machine), run.data.partition("; ")[2], part.replace("_", " ")])
            rows[-1] += [f"{times[part]:,.1f} ms", f"{times[part] / whole:.0%}", *work, bound, source_of(run)]
    header = ["machine", "model", "what", "time", "of the step", "GFLOP", "GB", "of its bound"]
    return grid([*header, "date, commit"], rows)


def serving(_: Link) -> str:
    """What ``benchmarks/serving.py`` measured, a row a load."""
    rows = []
    for run in (run for where, run in runs().items() if where.startswith("serving/")):
        for load in [key.removesuffix("_p50_ms") for key in run.numbers if key.endswith("_p50_ms")]:
            keys = [f"{load}_{key}" for key in ("images_per_second", "p50_ms", "p95_ms", "p99_ms")]
            rows.append([load.replace("_", " "), *(f"{run.values(key)[0]:,}" for key in keys), source_of(run)])
    return grid(["load", "images/s", "p50 ms", "p95 ms", "p99 ms", "date, commit"], rows)


def claims(_: Link) -> str:
    """What ``benchmarks/false_claims.py`` counted: a row for so many images and seeds, a column for a difference."""
    rows: dict[tuple[str, str], list[str]] = {}
    header = ["test images", "seeds"]
    for run in (run for where, run in runs().items() if where.startswith("statistics/")):
        for key in run.numbers:
            images, seeds, points = key.split("_")[::2]
            row = rows.setdefault((images, seeds), [f"{int(images):,}", seeds])
            row.append(f"{run.values(key)[0]:.1f} %")
            title = f"{points} points apart" if float(points) else "equal"
            header += [title] * (title not in header)
    return grid(header, rows.values())


def comparison(link: Link, where: str) -> str:
    """What ``convnext compare`` found, a row a contender in the order of training, with the difference from the first.

    Raises:
        TableError: that folder below ``results`` has no comparison.
    """
    run, path = runs().get(where), ROOT / "results" / where / "report.json"
    if run is None or not path.is_file():
        raise TableError(f"results/{where} has no run.json and report.json of a comparison")
    report, rows = json.loads(path.read_text(encoding="utf-8")), []
    top1s = {contender["name"]: contender["top1"] for contender in report["contenders"]}
    first, *_ = names = list(dict.fromkeys(cell["contender"] for cell in report["cells"]))
    for name in names:
        top1, spread = top1s[name]["mean"], top1s[name]["std"]
        cells = [cell for cell in report["cells"] if cell["contender"] == name]
        rows.append([name, f"{100 * top1:.2f}" + (f" ± {100 * spread:.2f} %" if spread is not None else " %")])
        pair = [pair for pair in report["pairs"] if {pair["a"], pair["b"]} == {first, name}]
        rows[-1] += [_points(pair[0], first) if pair else ""]
        rows[-1] += [f"{cells[0]['parameters'] / 1e6:.2f} M", f"{cells[0]['forward_flops'] / 2e9:.3f}"]
        rows[-1] += [f"{cells[0]['points'][-1]['epoch']}"]
        rows[-1] += [f"{mean(cell['seconds'] for cell in cells) / 60:.1f} min"] * (run.minutes is not None)
    header = ["contender", "test top-1", "points from the first", "parameters", "GMACs", "epochs"]
    header += ["a training"] * (run.minutes is not None)
    seeds = f"{len(run.seeds)} seed{'s' * (len(run.seeds) > 1)}"
    return f"{grid(header, rows)}\n{link('Report', where)}; {seeds}; {run.machine}; {source_of(run)}.\n"


def _points(pair: dict[str, Any], first: str) -> str:
    """The difference of the other from the ``first``, with its interval, in bold where it is significant."""
    sign = -100 if pair["a"] == first else 100
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    text = f"{sign * pair['difference'] + 0.0:+.2f} ({low:+.2f} to {high:+.2f})"  # no -0.00
    return f"**{text}**" if pair["significant"] else text
