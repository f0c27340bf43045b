"""Cells of runs that were trained by hand."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import convnext
from convnext.comparison.existing import cells_of_runs
from convnext.errors import CheckpointError
from convnext.runs.folder import write_settings


def test_what_varies_are_the_settings_in_which_they_differ(digits_run: convnext.Run, tmp_path: Path) -> None:
    runs = []
    varied: list[dict[str, Any]] = [{}, {"seed": 1}, {"optimizer.lr": 0.1}, {"model.name": "convnext_atto"}]
    for number, changes in enumerate(varied):
        run = Path(shutil.copytree(digits_run.path, tmp_path / f"run-{number}", symlinks=True))
        depths = {"model.depths": (2, 2, 6, 2), "model.dims": (40, 80, 160, 320)} if "model.name" in changes else {}
        write_settings(run, digits_run.settings.replace(**changes, **depths))
        runs.append(run)
    (runs[2] / "test_report.json").unlink()
    cells = cells_of_runs([tmp_path])
    assert [(cell.model, cell.settings, cell.seed, cell.fold) for cell in cells] == [
        ("convnext_tiny", {"optimizer.lr": 0.002}, 0, None),
        ("convnext_tiny", {"optimizer.lr": 0.002}, 1, None),
        ("convnext_tiny", {"optimizer.lr": 0.1}, 0, None),
        ("convnext_atto", {"optimizer.lr": 0.002}, 0, None),
    ]
    assert [cell.run for cell in cells] == [runs[0], runs[1], None, runs[3]]
    assert cells[2].problem == f"{runs[2]} is not finished"
    assert cells_of_runs(runs) == cells


def test_what_changes_the_result_of_a_finished_run_is_varied_too(digits_run: convnext.Run, tmp_path: Path) -> None:
    for patience in (None, 3):
        run = Path(shutil.copytree(digits_run.path, tmp_path / f"run-{patience}", symlinks=True))
        write_settings(run, digits_run.settings.replace(patience=patience, **{"data.workers": patience}))
    assert [cell.settings for cell in cells_of_runs([tmp_path])] == [{"patience": 3}, {"patience": None}]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run and has none"):
        cells_of_runs([tmp_path])
