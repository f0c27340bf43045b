"""`export`: a trained model as a file that other programs run, and the proof that it says the same."""

import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from convnext.config import DataSettings, RunSettings
from convnext.data.datasets.load import load_splits
from convnext.data.splits import Splits
from convnext.errors import CheckpointError, SettingsError, did_you_mean
from convnext.inference.backends import Backend, ExportInfo, Precision, open_file
from convnext.inference.backends.eager import EagerBackend
from convnext.inference.export import checks
from convnext.inference.export.formats import Source
from convnext.inference.predictor import released
from convnext.runs import checkpoint as checkpoints
from convnext.runs.folder import home
from convnext.weights.catalogue import WEIGHTS, find
from convnext.weights.files import usual_checkpoint
from convnext.weights.model_info import ModelInfo


@dataclass(frozen=True)
class Format:
    """How a format is written.

    Attributes:
        suffix: of its files; empty for a folder.
        module: of this package, with a function ``write(source, path)``, and for a folder ``open_folder(path, info)``.
        needs: packages that it takes.
        files: suffixes of all the files of one export.
    """

    suffix: str
    module: str
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def paths(self, path: Path) -> list[Path]:
        """All that an export of that path has: files with its stem, or the folder."""
        return [path.with_suffix(suffix) for suffix in self.files] or [path]


FORMATS = {
    "onnx": Format(".onnx", "onnx_file", ("onnx", "onnxscript", "onnxruntime"), (".onnx",)),
    "openvino": Format(".xml", "openvino_file", ("openvino", "onnx", "onnxscript"), (".bin", ".xml")),
    "torch": Format(".pt2", "torch_file", (), (".pt2",)),
    "hub": Format("", "hub_folder"),
}
_CALIBRATION = 300  # training images that int8 learns its ranges from: NNCF's custom
_COMPARED = 72  # test images that every export is compared on
_TOLERANCE = 1e-3  # of a logit of fp32
_ROUNDED = 0.05  # of the largest logit, where pre-processing is inside


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        path: the file; OpenVINO's has a ``.bin`` beside it.
        comparison: with its source, on test images.
        source_top1: the source's accuracy on the whole test split, between 0 and 1; None for fp32, whose logits are
            the same.
        top1: the file's.
    """

    path: Path
    comparison: checks.Comparison
    source_top1: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class _Origin:
    """A model to export, and where it comes from."""

    model: nn.Module
    info: ModelInfo
    licence: str
    folder: Path
    name: str
    data: DataSettings | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    settings: RunSettings | None = None
    report: Path | None = None


def export(
    run: str | Path,
    format: str = "onnx",
    *,
    precision: Precision = "fp32",
    output: str | Path | None = None,
    checkpoint: str | None = None,
    include_preprocessing: bool = False,
    max_drop: float = 0.3,
    root: str | Path | None = None,
) -> Export:
    """Write a model as a file that other programs run, and compare the two; what does not pass is not left behind.

    Args:
        run: the run's folder, a checkpoint's or its ``model.safetensors``; or a model and its released weights, such as
            ``"convnext_tiny:in1k"``.
        format: one of `FORMATS`.
        precision: of the file's arithmetic.
        output: the new file; None for one in the run's folder, or for released weights in the working folder.
        checkpoint: as of `convnext.evaluate`.
        include_preprocessing: whether the file takes uint8 images ``(N, H, W, C)`` of any size, and resizes, crops and
            normalises them as evaluation does; or else normalised float32 ``(N, C, H, W)``.
        max_drop: points of top-1 on the test split that another precision than fp32 may cost.
        root: a folder of images in place of the one trained on.

    Returns:
        The file, and how it compares.

    Raises:
        UserError: a file that exists, a package that is missing, a precision that the format lacks, images that are
            missing; or logits or an accuracy that are not the source's.
    """
    origin = _origin(str(run), checkpoint)
    chosen = find_format(format)
    path = Path(output) if output else origin.folder / _file_name(origin.name, precision, include_preprocessing, chosen)
    check_target(path, chosen)
    splits = _splits(origin, root)
    info = ExportInfo(
        version=version("convnext"),
        precision=precision,
        preprocessing=include_preprocessing,
        licence=origin.licence,
        model=origin.info,
        data=(origin.data or DataSettings()).replace(root=None, exclude=None),
        fingerprints=origin.fingerprints,
    )
    eager = EagerBackend(origin.model, origin.info, "cpu")
    images = checks.pictures(splits.train, eager, _CALIBRATION) if precision == "int8" else []
    module = import_module(f"convnext.inference.export.{chosen.module}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        module.write(Source(eager.model, info, images, origin.settings, origin.report), unfinished)
        exported = open_file(unfinished, "cpu", trust=True) if chosen.suffix else module.open_folder(unfinished, info)
        result = _checked(eager, exported, splits, info, max_drop, path)
        for written, target in zip(chosen.paths(unfinished), chosen.paths(path), strict=True):
            written.replace(target)
    return result


def _origin(run: str, checkpoint: str | None) -> _Origin:
    name, _, tag = run.partition(":")
    if tag and not Path(run).exists():
        return _Origin(*released(name, tag), find(name, tag).licence, Path(), f"{name}-{tag}")
    folder = checkpoints.find(Path(run), checkpoint)
    model, info = checkpoints.load_model(folder)
    home_folder, settings = home(folder)
    weights = info.model.weights
    is_released = weights is not None and weights in WEIGHTS.get(info.model.name, {})
    licence = find(info.model.name, weights).licence if weights and is_released else ""
    fingerprints = checkpoints.read_fingerprints(folder)
    report = _report(home_folder, folder)
    return _Origin(model, info, licence, home_folder, "model", settings.data, fingerprints, settings, report)


def _report(run: Path, checkpoint: Path) -> Path | None:
    """The run's report on its test split, of that checkpoint; None where there is none."""
    usual = run == checkpoint or checkpoint.resolve() == (run / "checkpoints" / usual_checkpoint(run)).resolve()
    names = (f"{split}{'' if usual else f'-{checkpoint.name}'}_report.json" for split in ("test", "val"))
    return next((path for name in names if (path := run / name).is_file()), None)


def _splits(origin: _Origin, root: str | Path | None) -> Splits:
    """The images to compare on. SettingsError for released weights without a folder of images."""
    if origin.data is None and root is None:
        raise SettingsError(
            "an export is compared with its source on images: give a folder of class folders as --data.root"
        )
    data = origin.data or DataSettings(mean=origin.info.mean, std=origin.info.std)
    return load_splits(data if root is None else data.replace(root=Path(root)))


def _file_name(stem: str, precision: str, preprocessing: bool, chosen: Format) -> str:
    words = [stem, *([precision] if precision != "fp32" else []), *(["with-preprocessing"] if preprocessing else [])]
    return "-".join(words) + (chosen.suffix or "-hub")


def find_format(name: str) -> Format:
    """The format of that name; SettingsError where there is none, or a package that it needs is missing."""
    if name not in FORMATS:
        raise SettingsError(f"no export format is called {name!r}: {did_you_mean(name, FORMATS)}")
    if missing := [package for package in FORMATS[name].needs if find_spec(package) is None]:
        raise SettingsError(f"--format {name} needs {', '.join(missing)}: pip install 'convnext[export]'")
    return FORMATS[name]


def check_target(path: Path, chosen: Format) -> None:
    """Refuse, with a SettingsError, a path that cannot be written, before there is work to lose."""
    if chosen.suffix and path.suffix != chosen.suffix:
        raise SettingsError(f"{path}: a file of this format ends in {chosen.suffix}")
    if exists := [other for other in chosen.paths(path) if other.exists()]:
        raise SettingsError(f"{exists[0]} exists already: remove it, or choose another --output")
    if not path.parent.is_dir():
        raise SettingsError(f"folder {path.parent} is not there: make it first")


def _checked(
    eager: Backend, exported: Backend, splits: Splits, info: ExportInfo, max_drop: float, path: Path
) -> Export:
    """The comparison of a file with its source; CheckpointError where it does not pass."""
    own, files = (checks.pictures(splits.test, backend, _COMPARED) for backend in (eager, exported))
    comparison = checks.compare(eager, exported, list(zip(own, files, strict=True)))
    if info.precision == "fp32":
        # Pre-processing of one's own may round a pixel to the grey level beside it, and reads a JPEG as a whole.
        tolerance = _ROUNDED * comparison.scale if info.preprocessing else _TOLERANCE
        if comparison.difference > tolerance or (comparison.other_class and not info.preprocessing):
            raise CheckpointError(
                f"{path} was not written: its logits differ from the source's by up to {comparison.difference:.2g}, "
                f"and {comparison.other_class} of {comparison.images} images get another class"
            )
        return Export(path, comparison)
    before, after = (
        checks.top1(backend, splits.test, f"testing {name}")
        for name, backend in (("source", eager), (info.precision, exported))
    )
    if 100 * (before - after) > max_drop:
        raise CheckpointError(
            f"{path} was not written: {info.precision} has {100 * after:.2f} % top-1 on the {splits.test_name} split, "
            f"and the source {100 * before:.2f} %: choose another --precision, or allow more with --max-drop"
        )
    return Export(path, comparison, before, after)
