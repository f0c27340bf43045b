"""`export`: a trained model as a file that other programs run, and the proof that it says the same."""

import math
import tempfile
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from convnext.config import DataSettings, RunSettings
from convnext.errors import SettingsError, did_you_mean
from convnext.inference.backends import Backend, ExportInfo, Images, Precision, open_file
from convnext.inference.backends.eager import EagerBackend
from convnext.inference.export import checks
from convnext.inference.export.acceptance import Examination, Export
from convnext.inference.export.evidence import Evidence, gather_evidence
from convnext.inference.export.formats import Source, check_size
from convnext.inference.released import released
from convnext.output import say
from convnext.runs import checkpoint as checkpoints
from convnext.runs.folder import home
from convnext.storage.files import check_new
from convnext.weights.catalogue import WEIGHTS, find
from convnext.weights.files import refuse_checkpoint, usual_checkpoint
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
_CALIBRATION = 300  # images that int8 learns its ranges from: NNCF's custom


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
    checkpoint: Path | None = None

    def describe(self, precision: Precision, preprocessing: bool) -> ExportInfo:
        """What a file says of itself."""
        return ExportInfo(
            version=version("convnext"),
            precision=precision,
            preprocessing=preprocessing,
            licence=self.licence,
            model=self.info,
            data=(self.data or DataSettings()).replace(root=None, exclude=None),
            fingerprints=self.fingerprints,
        )


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
        max_drop: points of top-1 on the test split that another precision than fp32 may cost; infinity takes any, also
            where there are no labels to measure it by.
        root: a folder of images in place of the one trained on; without class folders, the logits alone are compared.

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
    _check_size(origin.model, format, precision)
    evidence = gather_evidence(origin.info, origin.data, None if root is None else Path(root), origin.fingerprints)
    check_measurable(evidence, precision, max_drop)
    info = origin.describe(precision, include_preprocessing)
    module = import_module(f"convnext.inference.export.{chosen.module}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        calibration = _calibration(evidence, precision, origin)
        source = Source(origin.model, info, calibration, origin.settings, *_report(origin, evidence, format))

        def write_and_open(float_layers: tuple[str, ...]) -> Backend:
            described = info.model_copy(update={"float_layers": float_layers})
            module.write(replace(source, info=described), unfinished)
            if chosen.suffix:
                return open_file(unfinished, "cpu", trust=True)
            folder: Backend = module.open_folder(unfinished, info)
            return folder

        result = Examination(path, unfinished, source, evidence, max_drop, write_and_open).export()
        check_target(path, chosen)  # another export may have been quicker
        for written, target in zip(chosen.paths(unfinished), chosen.paths(path), strict=True):
            written.replace(target)
    return result


def check_measurable(evidence: Evidence, precision: Precision, max_drop: float) -> None:
    """Refuse, with a SettingsError, a precision whose accuracy would not be measured, unless any is accepted; and a
    NaN, which no accuracy passes."""
    if math.isnan(max_drop):
        raise SettingsError(f"max-drop: must be a number, or inf, got {max_drop}")
    if precision == "int8" and evidence.calibration is None:
        raise SettingsError("int8 learns its ranges from images: give a folder of them as --data.root")
    if precision != "fp32" and evidence.splits is None and max_drop != math.inf:
        raise SettingsError(
            f"{precision} can cost accuracy, which cannot be measured, since {evidence.unmeasured}: give a folder of "
            f"class folders as --data.root, or --max-drop inf to do without"
        )


def _calibration(evidence: Evidence, precision: Precision, origin: _Origin) -> list[Images]:
    if precision != "int8" or evidence.calibration is None:
        return []
    return checks.pictures(evidence.calibration, EagerBackend(origin.model, origin.info, "cpu"), _CALIBRATION)


def _origin(run: str, checkpoint: str | None) -> _Origin:
    name, _, tag = run.partition(":")
    if tag and name != "hf" and not Path(run).exists():
        refuse_checkpoint(checkpoint, run, "released weights")
        return _Origin(*released(name, tag), find(name, tag).licence, Path(), f"{name}-{tag}")
    folder = checkpoints.find(Path(run), checkpoint)
    model, info = checkpoints.load_model(folder)
    home_folder, settings = home(folder)
    weights = info.model.weights
    is_released = weights is not None and weights in WEIGHTS.get(info.model.name, {})
    licence = find(info.model.name, weights).licence if weights and is_released else ""
    fingerprints = checkpoints.read_fingerprints(folder)
    return _Origin(model, info, licence, home_folder, "model", settings.data, fingerprints, settings, folder)


def _check_size(model: nn.Module, format: str, precision: Precision) -> None:
    """Refuse, with a UserError, a model that is too large for its format, before there is work to lose."""
    if format in ("onnx", "openvino"):
        check_size(model, precision if format == "onnx" else "fp32")  # OpenVINO's begins as one of fp32


def _report(origin: _Origin, evidence: Evidence, format: str) -> tuple[Path | None, str]:
    """For the card of a folder for the Hub the run's report on what it is tested on, of the very weights, and what that
    split is called; None where there is none."""
    run, checkpoint, split = origin.folder, origin.checkpoint, "test"
    if format != "hub" or checkpoint is None:
        return None, split
    splits, recorded = evidence.splits, origin.fingerprints.get("test")
    if splits is not None and splits.test_name == "val" and splits.test.fingerprint() == recorded:
        split = "val"  # the run's data has no other split to test on
    usual = run == checkpoint or checkpoint.resolve() == (run / "checkpoints" / usual_checkpoint(run)).resolve()
    path = run / f"{split}{'' if usual else f'-{checkpoint.name}'}_report.json"
    if not path.is_file():
        return None, split
    if path.stat().st_mtime < (checkpoint / "model.safetensors").stat().st_mtime:
        say(f"{path} is older than the weights, so the card has no numbers: convnext evaluate makes it anew")
        return None, split
    return path, split


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
    for other in chosen.paths(path):
        check_new(other)
