"""The card of a model on the Hugging Face Hub: what it is, how good, under which licence, and how it is loaded."""

import json
from typing import Any

from convnext.config import RunSettings
from convnext.data.datasets.catalogue import DATASETS
from convnext.inference.export.formats import Source
from convnext.models import registry
from convnext.output import escaped
from convnext.weights.catalogue import find, is_weights_file
from convnext.weights.model_info import read_object

_LISTED = 100  # classes up to which all are listed


def model_card(source: Source, timm_problem: str | None) -> str:
    """The text of ``README.md``, with the facts that the Hub reads before it.

    Args:
        source: the model.
        timm_problem: why timm does not have it; None where it has.
    """
    report = {} if source.report is None else read_object(source.report)
    front = _front_matter(source, timm_problem, report)
    facts = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()]  # JSON is YAML, too
    paragraphs = [
        f"# {_title(source)}",
        f"{registry.describe(source.info.model.model)}, for {len(source.info.model.classes):,} classes of images, "
        f"written by convnext {source.info.version}.",
        *_numbers(source, report),
        *_usage(source, timm_problem),
        *_training(source),
        *_classes(source),
    ]
    return "\n".join(["---", *facts, "---", "", "\n\n".join(paragraphs)]) + "\n"


def data_name(settings: RunSettings | None) -> str | None:
    """The data set's name on the Hub or in the catalogue; None for folders and files of one's own."""
    if settings is None:
        return None
    name = settings.data.name
    if name.startswith("hf:"):
        return None if name[3:].startswith((".", "/")) else name[3:]
    return name if name in DATASETS and name != "folder" else None


def _title(source: Source) -> str:
    model, name = source.info.model.model, data_name(source.settings)
    return f"{model.name} on {name}" if name else model.name


def _front_matter(source: Source, timm_problem: str | None, report: dict[str, Any]) -> dict[str, Any]:
    libraries = ["convnext"] if timm_problem else ["convnext", "timm", "transformers"]
    name = data_name(source.settings)
    facts: dict[str, Any] = {
        "license": source.info.licence.lower() or "unknown",
        "library_name": "convnext" if timm_problem else "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", *libraries],
    }
    if name:
        facts["datasets"] = [name]
    if report:
        metrics = [{"type": "accuracy", "value": report["top1"]}, {"type": "f1", "value": report["macro_f1"]}]
        dataset = {"name": name or "images of its own", "type": name or "imagefolder", "split": source.tested_on}
        result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
        facts["metrics"] = ["accuracy", "f1"]
        facts["model-index"] = [{"name": _title(source), "results": [result]}]
    return facts


def _numbers(source: Source, report: dict[str, Any]) -> list[str]:
    model = source.info.model.model
    if report:
        top1, top5 = (f"{100 * report[key]:.2f} %" for key in ("top1", "top5"))
        return [
            f"| images of the {source.tested_on} split | top-1 | top-5 | macro-F1 | cross-entropy |\n"
            "| --- | --- | --- | --- | --- |\n"
            f"| {report['count']:,} | {top1} | {top5} | {report['macro_f1']:.4f} | {report['loss']:.4f} |"
        ]
    if source.settings is None and model.weights is not None:
        published = find(model.name, model.weights).top1
        return [f"Top-1 on ImageNet-1k's validation images: {published} %, as its authors published it."]
    return ["It has not been measured on a test split."]


def _usage(source: Source, timm_problem: str | None) -> list[str]:
    info = source.info.model
    shorter = round(info.image_size / info.center_crop)
    paragraphs = [
        "## How to use it",
        f"Images have {info.channels} channel{'s' * (info.channels > 1)}: the shorter side is resized to {shorter} "
        f"pixels (bicubic), the middle {info.image_size} x {info.image_size} are kept, and on a scale of 0 to 1 mean "
        f"{_numerals(info.mean)} and standard deviation {_numerals(info.std)} are taken out.",
        '```python\nimport convnext\n\nconvnext.Predictor.load("FOLDER")("image.jpg")\n```',
    ]
    if timm_problem:
        return [*paragraphs, f"It is for convnext alone; timm and transformers have no such model: {timm_problem}."]
    code = (
        "import timm, transformers\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:OWNER/NAME\n'
        'model = transformers.AutoModelForImageClassification.from_pretrained("FOLDER")  # or OWNER/NAME'
    )
    return [*paragraphs, f"```python\n{code}\n```"]


def _numerals(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _training(source: Source) -> list[str]:
    weights, settings = source.info.model.model.weights, source.settings
    lines = ["## Data, and where the weights come from"]
    if settings is not None:
        name = data_name(settings)
        entry = DATASETS.get(name or "")
        what = f"{entry.title} ({entry.licence}; {entry.home})" if entry else name or "images of its trainer's own"
        lines.append(f"Trained on {what}. All settings are in `training.json`.")
    if source.info.licence:
        began = (
            "Its authors released it" if settings is None else f"Training began from the released weights {weights},"
        )
        lines.append(f"{began} under {source.info.licence}.")
    elif weights is not None and is_weights_file(weights):
        lines.append("Training began from other weights, whose licence is not known here: set `license` above.")
    else:
        lines.append("Training began from random weights: its licence is for its trainer to set, as `license` above.")
    return lines


def _classes(source: Source) -> list[str]:
    names = source.info.model.classes
    listed = "; ".join(escaped(name) for name in names[:_LISTED])
    more = f"; and {len(names) - _LISTED:,} more, in `model.json`" if len(names) > _LISTED else ""
    return ["## Classes", f"{listed}{more}"]
