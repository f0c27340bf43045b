"""Folders for the Hugging Face Hub: timm, transformers and this package read the same logits from them."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from numpy.typing import NDArray
from torch import nn

import convnext
from convnext.cli import main
from convnext.config import DataSettings, ModelSettings
from convnext.data.datasets.load import load_splits
from convnext.errors import CheckpointError, SettingsError, UserError
from convnext.inference.backends import ExportInfo, normalized
from convnext.inference.backends.eager import EagerBackend
from convnext.inference.export import hub_folder, model_card
from convnext.inference.export.export import export
from convnext.inference.export.formats import Source
from convnext.models import registry
from convnext.storage import hub
from convnext.weights.model_info import ModelInfo
from tests.support.hub import TOKEN, Hub

SIDE = 32


@pytest.fixture(scope="module")
def four_stages(tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    """A run of a ConvNeXt that timm has."""
    model = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "kernel_size": 3}
    output = tmp_path_factory.mktemp("runs")
    return convnext.train(convnext.recipe("digits", epochs=1, output=output, trackers=(), model=model))


@pytest.fixture(scope="module")
def folder(four_stages: convnext.Run) -> Path:
    assert main(["export", str(four_stages.path), "--format", "hub"]) == 0
    return four_stages.path / "model-hub"


@pytest.fixture(scope="module")
def digits() -> NDArray[np.uint8]:
    """16 of scikit-learn's digits as uint8 ``(N, 32, 32, 1)``."""
    images = load_splits(DataSettings(name="digits", image_size=8)).test
    return np.stack([np.asarray(images.load(index)).repeat(4, 0).repeat(4, 1)[..., None] for index in range(16)])


def logits_from_timm(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    model: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]


def logits_from_transformers(path: Path, images: NDArray[np.float32], classes: tuple[str, ...]) -> NDArray[np.float32]:
    model = transformers.AutoModelForImageClassification.from_pretrained(path).eval()
    assert model.config.id2label == dict(enumerate(classes))
    assert model.config.label2id == {name: index for index, name in enumerate(classes)}
    with torch.inference_mode():
        return model(torch.from_numpy(images)).logits.numpy()  # type: ignore[no-any-return]


def test_timm_and_transformers_read_a_run_as_it_is(folder: Path, four_stages: convnext.Run) -> None:
    source = convnext.Predictor.load(four_stages.path)
    test = load_splits(four_stages.settings.data).test
    images = np.stack([np.asarray(test.load(index))[..., None] for index in range(0, 360, 20)])
    expected, pixels = source.backend(images), normalized(images, source.info)
    np.testing.assert_allclose(logits_from_timm(folder, pixels), expected, atol=1e-4)
    np.testing.assert_allclose(logits_from_transformers(folder, pixels, source.info.classes), expected, atol=1e-4)
    np.testing.assert_allclose(convnext.Predictor.load(folder).backend(images), expected, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(processor(test.load(0), return_tensors="pt")["pixel_values"][0], pixels[0], atol=1e-5)


def test_the_folder_is_used_as_its_run(
    folder: Path, four_stages: convnext.Run, digits_images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(folder, tmp_path / "model-hub")
    image = str(next((digits_images / "test" / "3").iterdir()))
    answers = []
    for run in (four_stages.path, copied):
        assert main(["predict", str(run), image, "--json"]) == 0
        answers.append(json.loads(capfd.readouterr().out)[0]["predictions"])
    assert [one["class"] for one in answers[0]] == [one["class"] for one in answers[1]]
    assert answers[0][0]["probability"] == pytest.approx(answers[1][0]["probability"], abs=1e-5)
    assert convnext.evaluate(copied).top1 == four_stages.report.top1
    model = convnext.create_model(weights=str(copied))
    loaded = convnext.Predictor.load(four_stages.path).model
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert main(["export", str(copied), "--output", str(tmp_path / "model.onnx")]) == 0


def test_the_card_says_what_the_hub_and_its_readers_ask(folder: Path, four_stages: convnext.Run) -> None:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "unknown"
    assert (facts["library_name"], facts["pipeline_tag"]) == ("timm", "image-classification")
    assert facts["datasets"] == ["digits"]
    (result,) = facts["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": four_stages.report.top1}
    assert f"| 360 | {100 * four_stages.report.top1:.2f} % |" in text
    assert "0; 1; 2; 3; 4; 5; 6; 7; 8; 9" in text
    assert "mean 0.3054 and standard deviation 0.376 are taken out" in text
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in text
    written = "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md"))
    assert str(four_stages.path.parent) not in written
    assert json.loads((folder / "training.json").read_text())["settings"]["epochs"] == 1


def test_the_card_has_numbers_of_these_weights_and_of_the_test_split_alone(
    four_stages: convnext.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(four_stages.path, tmp_path / "run", symlinks=True)
    report = run / "test_report.json"
    trained_on = (run / "checkpoints" / "last" / "model.safetensors").stat().st_mtime + 1
    os.utime(run / "checkpoints" / "last" / "model.safetensors", (trained_on, trained_on))
    os.utime(report, (trained_on - 1, trained_on - 1))
    assert main(["export", str(run), "--format", "hub", "--output", str(tmp_path / "older")]) == 0
    assert f"{report} is older than the weights, so the card has no numbers" in capfd.readouterr().err
    report.rename(run / "val_report.json")
    os.utime(run / "val_report.json")
    assert main(["export", str(run), "--format", "hub", "--output", str(tmp_path / "validation")]) == 0
    for name in ("older", "validation"):
        text = (tmp_path / name / "README.md").read_text()
        assert "It has not been measured on a test split." in text
        assert "model-index" not in text


def test_the_card_names_the_split_that_stands_in_for_a_test(small_folder: Path, tmp_path: Path) -> None:
    (small_folder / "test").rename(small_folder / "val")
    model = {"depths": (1, 1), "dims": (8, 16)}
    data = {"root": small_folder, "image_size": 16, "workers": 0}
    settings = convnext.recipe("folder", epochs=1, batch_size=16, output=tmp_path, trackers=(), model=model, data=data)
    run = convnext.train(settings)
    assert run.test_name == "val"
    export(run.path, "hub", output=tmp_path / "hub")
    _, front, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["dataset"]["split"] == "val"
    assert "| images of the val split | top-1 |" in text
    assert f"| {run.report.count} | {100 * run.report.top1:.2f} % |" in text


def source_of(settings: ModelSettings, licence: str = "", **others: Any) -> Source:
    channels = settings.in_channels or 3
    info = ModelInfo(
        model=registry.resolve(settings, channels),
        classes=("a", 'b "c": [d]', "é"),
        mean=(0.3,) * channels,
        std=(0.4,) * channels,
        image_size=SIDE,
        center_crop=0.875,
    )
    torch.manual_seed(0)
    model = registry.build(info.model, 3).eval()
    if settings.name.startswith("convnext"):  # whose logits are close to 0 at first
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    described = ExportInfo(
        version="1", precision="fp32", preprocessing=False, licence=licence, model=info, data=DataSettings()
    )
    return Source(model, described, [], **others)


SMALL: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "convnext_tiny", **SMALL, "patch_size": 1, "in_channels": 1},
        {"name": "convnext_atto", "depths": (1, 1, 1, 1), "dims": (40, 40, 40, 48), "patch_size": 3, "kernel_size": 5},
        {"name": "convnextv2_tiny", **SMALL},
        {"name": "convnextv2_tiny", **SMALL, "layer_scale": 0.1},
        {"name": "convnext_tiny", **SMALL, "grn": True},
        {"name": "resnet18", "in_channels": 1},
        {"name": "timm:test_resnet"},
    ],
)
def test_every_model_that_timm_has(settings: dict[str, Any], digits: NDArray[np.uint8], tmp_path: Path) -> None:
    source = source_of(ModelSettings(**settings))
    info = source.info.model
    hub_folder.write(source, tmp_path / "folder")
    images = digits.repeat(info.channels, axis=-1)
    expected = EagerBackend(source.model, info, "cpu")(images)
    assert np.ptp(expected, axis=0).max() > 1e-3
    pixels = normalized(images, info)
    np.testing.assert_allclose(logits_from_timm(tmp_path / "folder", pixels), expected, atol=1e-4)
    np.testing.assert_allclose(logits_from_transformers(tmp_path / "folder", pixels, info.classes), expected, atol=1e-4)
    backend = hub_folder.open_folder(tmp_path / "folder", source.info)
    assert list(backend.readers) == ["convnext", "timm"]
    np.testing.assert_allclose(backend(images), expected, atol=1e-4)
    nn.init.normal_(next(backend.readers["timm"].parameters()))
    with pytest.raises(CheckpointError, match=r"timm reads other logits from .*folder"):
        backend(images)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"depths": (1, 1), "dims": (8, 16)}, "model.depths has 2 stages, and its ConvNeXt has 4"),
        ({**SMALL, "patch_size": 2}, "model.patch_size is 2, and its stems have 1, 3 or 4"),
        ({**SMALL, "mlp_ratio": 2}, "model.mlp_ratio is 2, and its blocks have 4"),
        ({**SMALL, "overlap": True}, "model.overlap is set"),
        ({**SMALL, "pool": True}, "model.pool is set"),
        ({**SMALL, "patch_size": 1, "whitening": True}, "model.whitening is set"),
        ({**SMALL, "stem_norm": False}, "model.stem_norm is not set"),
        ({"name": "roadmap", "depths": (1, 1)}, "model.name is roadmap"),
        ({"name": "resnet18", "patch_size": 2}, "model.patch_size is 2, and its stems have 4"),
    ],
)
def test_what_timm_lacks_is_written_for_this_package_and_says_so(
    settings: dict[str, Any], problem: str, digits: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = source_of(ModelSettings(**{"name": "convnext_tiny", **settings}))
    hub_folder.write(source, tmp_path / "folder")
    assert f"for convnext alone; timm and transformers have no such model: {problem}" in capfd.readouterr().err
    card = (tmp_path / "folder" / "README.md").read_text()
    assert f"timm and transformers have no such model: {problem}" in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "convnext"
    assert not (tmp_path / "folder" / "config.json").exists()
    images = digits.repeat(3, axis=-1)
    expected = EagerBackend(source.model, source.info.model, "cpu")(images)
    np.testing.assert_allclose(convnext.Predictor.load(tmp_path / "folder").backend(images), expected, atol=1e-5)


def test_the_card_of_released_weights_has_their_licence_and_number() -> None:
    card = model_card.model_card(
        source_of(ModelSettings(name="convnextv2_atto", weights="fcmae_ft_in1k"), "CC-BY-NC-4.0"), None
    )
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-nc-4.0"
    assert "Its authors released it under CC-BY-NC-4.0." in card
    assert "76.7 %, as its authors published it" in card
    assert 'a; b "c": [d]; é' in card


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub, in place of the real one."""
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    patched = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": files, "HF_HUB_CACHE": str(tmp_path / "cache")}
    for name, value in patched.items():  # what $HF_ENDPOINT and $HF_HOME set when the package is imported
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    assert server.unknown == []


def test_a_run_is_pushed_and_predicts_from_the_hub(
    four_stages: convnext.Run, digits_images: Path, tmp_path: Path, server: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(four_stages.path), "--format", "hub", "--output", str(tmp_path / "first"), "--push"]
    assert main([*words, "owner/digits"]) == 0
    assert f"pushed: {server.url}/owner/digits/commit/" in capfd.readouterr().err
    files = server.repositories["owner/digits"]
    assert {name: len(body) for name, body in files.items()} == {
        path.name: path.stat().st_size for path in (tmp_path / "first").iterdir()
    }
    assert server.private == {"owner/digits": True}
    image = next((digits_images / "test" / "3").iterdir())
    assert convnext.Predictor.load("hf:owner/digits")(image) == convnext.Predictor.load(tmp_path / "first")(image)
    files.pop("model.json")
    hub.push(tmp_path / "first", "owner/digits")  # again, into the repository that is there
    assert "model.json" in files
    hub.push(tmp_path / "first", "owner/seen", private=False)
    assert server.private["owner/seen"] is False


def test_a_push_that_cannot_be_is_one_line(folder: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot be pushed to other/digits: .*the repository is of somebody else"):
        hub.push(folder, "other/digits")
    with pytest.raises(UserError, match="cannot fetch the model owner/nothing: there is none, or it is private"):
        hub.fetch_model("owner/nothing")
    server.repositories["owner/foreign"] = {"config.json": b"{}"}
    with pytest.raises(UserError, match=r"owner/foreign has no model\.json: it was not written by convnext export"):
        hub.fetch_model("owner/foreign")
    for name in ("digits", "a b/c", "a/b/c"):
        with pytest.raises(SettingsError, match=f"'{name}' is no repository's name"):
            hub.check_push(name)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="the token is refused, or there is none: log in by hf auth login"):
        hub.push(folder, "owner/digits")


def test_without_a_token_nothing_is_written(
    four_stages: convnext.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    words = ["export", str(four_stages.path), "--output", str(tmp_path / "folder"), "--push", "owner/digits"]
    assert main([*words, "--format", "hub"]) == 2
    assert "takes a token of the Hugging Face Hub: log in by hf auth login, or set HF_TOKEN" in capfd.readouterr().err
    assert main(words) == 2
    assert "--push is for --format hub, and the format is onnx" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_folder_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    server = Hub()
    server.server_close()  # so that its port takes no connection
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(
        UserError, match=r"model-hub is written, but cannot be pushed to owner/digits: .*check the network"
    ):
        hub.push(folder, "owner/digits")


@pytest.mark.parametrize("words", [{"precision": "fp16"}, {"include_preprocessing": True}])
def test_other_precisions_are_refused(words: dict[str, Any], four_stages: convnext.Run, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the Hub's format has fp32 weights"):
        export(four_stages.path, "hub", output=tmp_path / "folder", **words)
    assert not list(tmp_path.iterdir())


def test_a_damaged_folder_is_refused_and_an_edited_card_is_not(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "README.md").write_text("mine")
    assert main(["inspect", str(copied), "--json"]) == 0
    assert [one["condition"] for one in json.loads(capfd.readouterr().out)["checkpoints"]] == ["whole"]
    for name in ("model.safetensors", "model.json"):
        damaged = bytearray((copied / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (copied / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{name} is damaged: its SHA-256 is not the one in"):
            convnext.Predictor.load(copied)
        shutil.copy(folder / name, copied)


def test_what_is_on_the_hub_is_for_predict(capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "export", "inspect"):
        assert main([command, "hf:owner/birds"]) == 2
        assert capfd.readouterr().err == (
            "convnext: predict, serve and benchmark alone take hf:owner/birds: get it with hf download owner/birds "
            "--local-dir DIR, and give DIR\n"
        )
