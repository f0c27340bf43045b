"""What a report says of one run is what its own files say, and is computed once."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convnext
from convnext.comparison.measured import LOGITS, Measured, inference_speed, measure
from convnext.errors import CheckpointError
from convnext.runs.folder import read_metrics


def test_accuracy_is_that_of_the_run_s_own_report_and_table(measured: Measured) -> None:
    own = json.loads((measured.run / "test_report.json").read_text())
    for name in ("top1", "top5", "macro_f1"):
        assert getattr(measured.report, name) == pytest.approx(own[name], abs=1e-9)
    with (measured.run / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert measured.correct.tolist() == [row["true"] == row["predicted"] for row in rows]
    assert measured.probabilities.max(1) == pytest.approx([float(row["probability_1"]) for row in rows], abs=1e-5)


def test_costs_are_those_of_the_history(measured: Measured) -> None:
    history = read_metrics(measured.run)
    assert measured.seconds == pytest.approx(sum(line["seconds"] for line in history))
    points = measured.points
    assert [point.top1 for point in points] == [line["val_top1"] for line in history]
    assert points[-1].seconds == pytest.approx(measured.seconds)
    assert points[-1].flops == measured.training_flops == pytest.approx(len(history) * points[0].flops)
    model = convnext.Predictor.load(measured.run)
    images = history[-1]["step"] * measured.settings.batch_size
    assert measured.training_flops == pytest.approx(3 * measured.flops * images, rel=0.01)
    assert len(model.info.classes) == measured.logits.shape[1]
    assert inference_speed(measured) > 0


def test_temperature_comes_from_the_validation_images_and_mends_the_error(measured: Measured) -> None:
    assert measured.temperature is not None
    assert measured.ece_calibrated is not None
    assert measured.ece_calibrated < measured.ece  # four epochs with label smoothing: less sure than it is right
    assert measured.temperature < 1
    confident, right = measured.probabilities.max(1), measured.correct
    bins = np.minimum((confident * 15).astype(int), 14)
    by_hand = sum(abs(confident[bins == k].sum() - right[bins == k].sum()) for k in range(15)) / len(right)
    assert measured.ece == pytest.approx(by_hand, abs=1e-6)


def test_logits_are_computed_once_and_anew_for_other_weights(
    better: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(better, tmp_path / "run", symlinks=True)
    first = measure(run)
    capfd.readouterr()
    again = measure(run)
    assert "evaluating" not in capfd.readouterr().err
    assert torch.equal(first.logits, again.logits)
    some = (run / LOGITS).read_bytes()[:100]
    (run / LOGITS).unlink()  # the file before is still mapped
    (run / LOGITS).write_bytes(some)
    assert torch.equal(first.logits, measure(run).logits)
    assert "evaluating" in capfd.readouterr().err
    path = run / "checkpoints" / "last" / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(path).items()}
    path.unlink()
    (path.parent / "sha256.json").unlink()
    save_file({name: value * 0 if name == "head.weight" else value for name, value in weights.items()}, path)
    assert measure(run).logits.std(dim=0).max() == pytest.approx(0, abs=1e-5)


def test_an_unfinished_run_is_refused(better: Path, tmp_path: Path) -> None:
    run = shutil.copytree(better, tmp_path / "run", symlinks=True)
    (run / "test_report.json").unlink()
    with pytest.raises(CheckpointError, match="is not finished: go on with convnext train --resume"):
        measure(run)
