"""Pictures that can be read: names of any length and script, many classes, and what is marked on the curves."""

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from convnext.plots import curves, predictions
from convnext.plots.predictions import PredictedImage, confused_together, confusion_matrix, prediction_grid
from convnext.plots.style import labels, new_figure, save_figure, shortened, wrapped

NAMES = (
    "plain",
    "n02099601, golden retriever, a dog of middle size with a dense coat",
    "a_name_of_many_words_without_any_space_between_them_as_folders_have",
    "W" * 90,
    "金毛寻回犬与其他许多种类的狗以及猫和鸟与鱼还有更多",
    "كلب ذهبي كبير جدا",
    "$x_{$",
    "two\nlines\x1b[31m",
    "\udce9",
    "🐶",
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written while a test runs."""
    figures: list[Figure] = []

    def save(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save_figure(figure, path)

    for module in (curves, predictions):
        monkeypatch.setattr(module, "save_figure", save)
    return figures


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_texts_of_a_grid_do_not_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    sides = [(40, 40), (300, 10), (10, 300), (1, 1)]
    shown = [
        PredictedImage(Image.new(mode, side), f"{name}.jpeg", other, name, 0.7)
        for (name, other), side, mode in zip(
            itertools.product(NAMES, NAMES[:4]), itertools.cycle(sides), itertools.cycle(("L", "RGB")), strict=False
        )
    ]
    prediction_grid(shown, "many", tmp_path / "grid.png")
    (figure,) = drawn
    written = [text for text in figure.findobj(Text) if text.get_text()]
    figure.set_dpi(120)  # as it was written
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        boxes = [text.get_window_extent() for text in written if text.get_visible()]
    assert sum(text.get_text().startswith(r"two\nlines\x1b") for text in written) == 2 * 4
    overlaps = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))]
    assert overlaps == []
    assert sum(": 70 %" in text.get_text() for text in written) == len(shown)


def test_a_grid_without_images_says_so(tmp_path: Path) -> None:
    prediction_grid([], "no mistakes", tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 100


def groups(classes: int, group: int) -> dict[str, dict[str, int]]:
    """Ten images a class, of which four are taken for others of the class's group; groups are classes of the same
    remainder, so that they do not stand together."""
    confusion = {}
    for true in range(classes):
        others = [k for k in range(classes) if k % group == true % group and k != true][:4]
        confusion[f"name {true}"] = {f"name {true}": 6} | {f"name {k}": 1 for k in others}
    return confusion


@pytest.mark.parametrize("classes", [2, 10, 100, 1200])
def test_a_confusion_matrix_of_any_number_of_classes(tmp_path: Path, drawn: list[Figure], classes: int) -> None:
    confusion, names = groups(classes, 7), [f"name {k}" for k in range(classes)]
    pair = {"true": "name 0", "predicted": "name 7", "count": 1, "support": 10}
    confusion_matrix(confusion, [pair], names, tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as picture:
        assert max(picture.size) < 2800
    (figure,) = drawn
    total = sum(sum(row.values()) for row in confusion.values())
    (title,) = (text for text in texts(figure) if " right (" in text)
    assert title.startswith(f"{6 * classes:,} of {total:,} right ({600 * classes / total:.2f} %)")
    assert ("1,200 classes, the 1,000 with the most mistakes" in title) == (classes == 1200)
    assert any("1 of 10  name 0\n    as name 7" in text for text in texts(figure)) == (classes > 30)
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(ticks) == min(classes, 100) or 40 < len(ticks) <= 60
    assert (ticks == names) == (classes <= 30)
    if classes <= 10:
        assert texts(figure).count("6") == classes


def test_classes_that_are_confused_stand_together() -> None:
    names = [f"name {k}" for k in range(40)]
    confusion = groups(40, 4)
    counts = np.array([[confusion[true].get(predicted, 0) for predicted in names] for true in names])
    order = confused_together(counts / counts.sum(1, keepdims=True))
    assert sorted(order) == list(range(40))
    assert len(list(itertools.groupby(order % 4))) == 4
    assert sorted(confused_together(np.eye(40))) == list(range(40))


def test_odd_names_on_a_confusion_matrix(tmp_path: Path) -> None:
    confusion_matrix({name: {name: 1} for name in NAMES}, [], NAMES, tmp_path / "matrix.png")
    many = [f"{name} {number}" for name in NAMES for number in range(4)]
    pairs = [{"true": one, "predicted": two, "count": 1, "support": 2} for one, two in itertools.pairwise(many)]
    confusion_matrix({name: {name: 1} for name in many}, pairs, many, tmp_path / "matrix.png")


def test_a_script_that_the_usual_font_lacks_gets_a_font_that_has_it(tmp_path: Path) -> None:
    figure = new_figure()
    lacking, usual = figure.text(0, 0, "\ue000\u26aa \ue23e"), new_figure()
    text = usual.text(0, 0, "plain é я ع")
    save_figure(figure, tmp_path / "a.png")
    save_figure(usual, tmp_path / "b.png")
    assert any(family.startswith("STIX") for family in lacking.get_fontfamily())
    assert list(text.get_fontfamily()) == ["sans-serif"]


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_wrapped_and_shortened(name: str) -> None:
    from rich.cells import cell_len

    lines = wrapped(name, 20, lines=2).split("\n")
    assert 1 <= len(lines) <= 2
    assert all(cell_len(line) <= 21 for line in lines)
    short = shortened(name, 20)
    assert cell_len(short) <= 21
    assert "\n" not in short
    if len(name) > 50:
        assert lines[-1].endswith("…")
        assert name.startswith(lines[0])
        assert short.startswith(name[:5])
        assert short.endswith(name[-5:])


def test_labels_begin_as_the_names_and_differ() -> None:
    names = ["tailed frog, bell toad, ribbed toad", "site of building one, left", "site of building one, right", "cat"]
    assert labels(names, 24) == [
        "tailed frog, bell toad…",
        "site of buil…g one, left",
        "site of buil… one, right",
        "cat",
    ]


def history() -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "step": 10 * epoch, "train_loss": 2 / epoch, "train_top1": 0.1 * epoch}
        | ({"val_loss": 3 / epoch, "val_top1": 0.7 - abs(epoch - 4) / 10} if epoch % 2 == 0 else {})
        for epoch in range(1, 7)
    ]


def test_curves_are_in_percent_and_have_the_best_epoch_and_the_test(tmp_path: Path, drawn: list[Figure]) -> None:
    curves.curves(history(), tmp_path / "c.png", "$x_{$", best_step=40, test={"epoch": 4, "loss": 0.5, "top1": 0.6543})
    curves.curves(history()[:1], tmp_path / "c.png", "begun")
    loss, accuracy = drawn[0].axes
    by_label = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}  # type: ignore[union-attr]
    assert by_label["val"] == pytest.approx(np.array([[2, 50], [4, 70], [6, 50]]))
    assert by_label["best: epoch 4, 70.00 %"] == pytest.approx(np.array([[4, 70]]))
    assert by_label["test: 65.43 %"] == pytest.approx(np.array([[4, 65.43]]))
    assert accuracy.get_ylabel() == "top-1 accuracy, %"
    assert [line.get_label() for line in loss.lines] == ["train", "val", "best: epoch 4, 0.7500", "test: 0.5000"]
    assert [line.get_label() for line in drawn[1].axes[1].lines] == ["train"]
    low, high = drawn[1].axes[1].get_xlim()
    assert [tick for tick in drawn[1].axes[1].get_xticks() if low <= tick <= high] == [1]


def test_curves_of_several_runs_are_in_percent(tmp_path: Path, drawn: list[Figure]) -> None:
    curves.compare({"a $b_{$": history(), "猫": history()[:2]}, tmp_path / "c.png")
    assert max(line.get_ydata().max() for line in drawn[0].axes[1].lines) == pytest.approx(70)  # type: ignore[union-attr]
