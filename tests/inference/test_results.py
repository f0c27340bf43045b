"""What a predictor gives beside classes, and the files that are made of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import convnext
from convnext.config import ModelSettings
from convnext.data.images import UnreadableImageError
from convnext.errors import DataError, SettingsError
from convnext.evaluation.evaluator import FlipAverage
from convnext.inference.predictor import Predictor
from convnext.inference.results import Writer, contact_sheet, embeddings, pictures
from convnext.models import registry
from convnext.weights.model_info import ModelInfo


@pytest.fixture
def digits(digits_images: Path) -> list[str]:
    """Nine images of different digits."""
    return [str(min((digits_images / "test" / str(number)).iterdir())) for number in range(9)]


def predictor_of(name: str, **settings: object) -> Predictor:
    """A predictor of a model with random weights."""
    torch.manual_seed(0)
    model = registry.resolve(ModelSettings.model_validate({"name": name, "weights": None} | settings))
    info = ModelInfo(
        model=model, classes=("a", "b", "c"), mean=(0.5,) * 3, std=(0.2,) * 3, image_size=32, center_crop=1.0
    )
    return Predictor(registry.build(model, 3), info)


@pytest.mark.parametrize(
    ("name", "settings", "width"),
    [
        ("convnext_atto", {"depths": (1, 1), "dims": (8, 16)}, 16),
        ("convnextv2_atto", {"depths": (1, 1), "dims": (8, 16)}, 16),
        ("roadmap", {"step": 3, "depths": (1, 1), "dims": (6, 12)}, 32),
        ("resnet18", {"patch_size": 2}, 512),
        ("swin_t", {"patch_size": 2}, 768),
        ("timm:test_convnext", {}, 64),
    ],
)
def test_features_are_what_the_classifier_sees(
    name: str, settings: dict[str, object], width: int, colour_image: Image.Image
) -> None:
    if name == "timm:test_convnext":
        pytest.importorskip("timm")
    predictor = predictor_of(name, **settings)
    other = colour_image.transpose(Image.Transpose.ROTATE_90)
    features = predictor.embed([colour_image, other])
    assert features.dtype == np.float32
    assert features.shape == (2, width)
    (result,) = predictor.results([colour_image], features=True)
    assert not isinstance(result, Exception)
    last = [module for module in predictor.model.modules() if isinstance(module, nn.Linear)][-1]
    logits = last(torch.from_numpy(features[:1]))
    expected = {one.class_name: one.probability for one in predictor(colour_image)}
    assert dict(zip("abc", logits.softmax(1)[0].tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)
    assert {one.class_name: one.probability for one in result.classes} == pytest.approx(expected, abs=1e-6)


def test_features_of_mirror_images_are_averaged(colour_image: Image.Image) -> None:
    predictor = predictor_of("convnext_atto", depths=(1, 1), dims=(8, 16))
    square = colour_image.resize((32, 32))
    both = predictor.embed([square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert not np.allclose(both[0], both[1])
    assert np.allclose(predictor.embed([square], flip=True)[0], both.mean(0), atol=1e-6)


def test_flip_is_that_of_evaluate(colour_image: Image.Image) -> None:
    predictor = predictor_of("convnext_atto", depths=(1, 1), dims=(8, 16))
    average = Predictor(FlipAverage(predictor.model), predictor.info)
    expected = dict(average(colour_image))
    assert dict(predictor(colour_image, flip=True)) == pytest.approx(expected, abs=1e-6)
    assert dict(predictor(colour_image)) != pytest.approx(expected, abs=1e-6)
    (result,) = predictor.results([colour_image], flip=True, features=True)
    assert not isinstance(result, Exception)
    assert dict(result.classes) == pytest.approx(expected, abs=1e-6)


def test_a_model_without_a_linear_classifier_has_no_features(colour_image: Image.Image) -> None:
    info = predictor_of("convnext_atto", depths=(1,), dims=(8,)).info
    model = nn.Sequential(nn.Conv2d(3, 3, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(SettingsError, match="no features before a linear classifier"):
        Predictor(model, info).embed([colour_image])


def test_an_exported_file_has_no_features(digits_run: convnext.Run, digits: list[str]) -> None:
    run = Predictor.load(digits_run.path)

    class File:
        """All that a backend of a file has."""

        name, info, preprocessing = "onnxruntime", run.info, False

        def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return run.backend(images)

    predictor = Predictor(File())
    assert list(predictor.batches(digits)) == list(run.batches(digits))
    with pytest.raises(SettingsError, match=r"an exported file gives logits alone \(onnxruntime\)"):
        predictor.embed(digits)


def test_embed_stops_at_an_unreadable_image(digits_run: convnext.Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match=r"bad\.png"):
        Predictor.load(digits_run.path).embed(tmp_path)


def test_a_folder_or_a_pattern_is_all_of_its_images(digits_run: convnext.Run, digits_images: Path) -> None:
    predictor = Predictor.load(digits_run.path)
    folder = digits_images / "test" / "3"
    expected = list(predictor.batches(sorted(folder.iterdir())))
    assert list(predictor.batches(folder, batch_size=7)) == expected
    assert list(predictor.batches(f"{folder}/*.png")) == expected
    with pytest.raises(DataError, match="matches nothing"):
        list(predictor.batches(f"{folder}/*.jpg"))


def test_a_stream_without_end_is_read_a_batch_at_a_time(digits_run: convnext.Run, digits: list[str]) -> None:
    taken = []

    def endless() -> object:
        while True:
            taken.append(digits[0])
            yield digits[0]

    results = Predictor.load(digits_run.path).batches(endless(), batch_size=4)  # type: ignore[arg-type]
    for _ in range(6):
        next(results)
    assert len(taken) == 8


def fill(writer: Writer, run: convnext.Run, images: list[str]) -> None:
    results = Predictor.load(run.path).results(images, features=True, preview=64)
    for name, result in zip(images, results, strict=True):
        assert not isinstance(result, Exception)
        writer(name, result)


def test_embeddings_in_both_formats(
    digits_run: convnext.Run, digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("convnext.inference.results.ROWS", 4)  # so that there are several blocks
    expected = Predictor.load(digits_run.path).embed(digits)
    for name in ("features.npy", "features.parquet"):
        with embeddings(tmp_path / name) as write:
            fill(write, digits_run, digits)
        with pytest.raises(SettingsError, match="exists already"), embeddings(tmp_path / name):
            pass
    assert np.array_equal(np.load(tmp_path / "features.npy"), expected)
    assert (tmp_path / "features.paths.txt").read_text().splitlines() == digits
    table = parquet.read_table(tmp_path / "features.parquet")
    assert table["path"].to_pylist() == digits
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), expected)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["features.npy", "features.parquet", "sheet.png"])
def test_nothing_half_written_is_left(name: str, digits_run: convnext.Run, digits: list[str], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")

    def attempt() -> None:
        writer = contact_sheet(tmp_path / name, digits) if name == "sheet.png" else embeddings(tmp_path / name)
        with writer as write:
            fill(write, digits_run, digits[:2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt()
    empty = contact_sheet(tmp_path / name, digits) if name == "sheet.png" else embeddings(tmp_path / name)
    with pytest.raises(DataError, match="no image could be read"), empty:
        pass
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"ends in \.npy or \.parquet"), embeddings(tmp_path / "features.csv"):
        pass
    with (
        pytest.raises(SettingsError, match="is not there: make it first"),
        embeddings(tmp_path / "no" / "features.npy"),
    ):
        pass
    with pytest.raises(SettingsError, match=r"ends in \.png"), contact_sheet(tmp_path / "sheet.jpg", ["a"]):
        pass
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SettingsError, match="needs pyarrow"), embeddings(tmp_path / "features.parquet"):
        pass
    assert not list(tmp_path.iterdir())


def test_pictures_never_replace_one_another(
    digits_run: convnext.Run, digits: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("one.png", "one.bmp"):
            path = tmp_path / folder / name
            Image.open(digits[1]).convert("RGB").save(path)
            names.append(str(path))
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / "one-3.png").write_text("mine")
    with pictures(out) as write:
        fill(write, digits_run, names)
    assert sorted(path.name for path in out.iterdir()) == [*(f"one-{n}.png" for n in (2, 3, 4, 5)), "one.png"]
    assert (out / "one-3.png").read_text() == "mine"
    assert Image.open(out / "one-5.png").width > 500
    assert capfd.readouterr().err == f"4 pictures in {out}; 3 numbered, since there were others of their name\n"
    with pictures(tmp_path / "new") as write:
        fill(write, digits_run, digits)
    assert capfd.readouterr().err == f"9 pictures in {tmp_path / 'new'}\n"


def test_a_contact_sheet_has_a_bounded_number_of_images(
    digits_run: convnext.Run, digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr("convnext.plots.predictions.prediction_grid", lambda *args: drawn.append(args))
    images = [*digits[1:], *(digits[:1] * 100), *digits[1:]]
    with contact_sheet(tmp_path / "sheet.png", images) as write:
        fill(write, digits_run, images)
    ((shown, title, _),) = drawn
    assert len(shown) == 64
    assert title == "64 of 116 images"
    assert {one.true for one in shown} == {None}
    assert shown[0].name == Path(digits[1]).name


def test_a_folder_that_stays_empty_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), pictures(tmp_path / "pictures"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "pictures").mkdir()
    with pytest.raises(KeyboardInterrupt), pictures(tmp_path / "pictures"):
        raise KeyboardInterrupt
    assert (tmp_path / "pictures").is_dir()
