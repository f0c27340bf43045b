"""Explanations by what must hold: the heat is where the object is that decides the class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Permute

import convnext
from convnext import kernels
from convnext.config import ModelSettings
from convnext.data.batch_transforms import Normalize
from convnext.errors import SettingsError, UserError
from convnext.inference.explanations import METHODS, Explanation, Method
from convnext.inference.export.export import export
from convnext.models import registry
from convnext.models.feature_maps import stages
from convnext.weights.model_info import ModelInfo

SIDE, OBJECT = 32, 8
CLASSES = ("red", "green", "blue", "nothing")  # the last so that no colour is known by the lack of others
CORNERS = {"top left": (2, 2), "top right": (22, 2), "bottom left": (2, 22), "bottom right": (22, 22)}


def scene(random: np.random.Generator, *objects: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Dark noise with bright squares, each of a class, left and top."""
    pixels = random.integers(30, 70, (SIDE, SIDE, 3), np.uint8)
    for colour, left, top in objects:
        pixels[top : top + OBJECT, left : left + OBJECT] = 20
        pixels[top : top + OBJECT, left : left + OBJECT, colour] = 240
    return pixels


def predictor(name: str = "convnext_atto", seed: int = 0, **settings: Any) -> convnext.Predictor:
    torch.manual_seed(seed)
    model = registry.resolve(ModelSettings(name=name, **settings))
    info = ModelInfo(model=model, classes=CLASSES, mean=(0.2,) * 3, std=(0.2,) * 3, image_size=SIDE, center_crop=1.0)
    return convnext.Predictor(registry.build(model, len(CLASSES)).eval(), info, "cpu")


@pytest.fixture(scope="module")
def trained() -> convnext.Predictor:
    """A small ConvNeXt that names the colour of the one bright square."""
    one = predictor(depths=(1, 1), dims=(16, 32), patch_size=2, layer_scale=1.0, init="torch")
    model, normalize, random = one.model.train(), Normalize(one.info.mean, one.info.std), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        labels = random.integers(0, len(CLASSES), 16)
        places = random.integers(0, SIDE - OBJECT + 1, (16, 2))
        images = np.stack(
            [scene(random, *[(c, x, y)] * (c < 3)) for c, (x, y) in zip(labels.tolist(), places.tolist(), strict=True)]
        )
        loss = F.cross_entropy(model(normalize(torch.from_numpy(images).permute(0, 3, 1, 2))), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.1
    model.eval()
    return one


def heat_near(explanation: Explanation, left: int, top: int) -> float:
    """The fraction of the heat that lies in the quarter of the image around an object."""
    half = SIDE // 2
    rows, columns = slice(half * (top >= half), None), slice(half * (left >= half), None)
    return float(explanation.heat[rows, columns][:half, :half].sum() / explanation.heat.sum())


@pytest.mark.parametrize("method", METHODS)
def test_the_heat_follows_an_object_into_each_corner(method: Method, trained: convnext.Predictor) -> None:
    random = np.random.default_rng(1)
    for colour, (left, top) in enumerate(list(CORNERS.values()) * 2):
        found = trained.explain(scene(random, (colour % 3, left, top)), method=method)
        assert (found.class_name, found.heat.shape) == (CLASSES[colour % 3], (SIDE, SIDE))
        assert 0.5 < found.probability <= 1
        assert found.heat.min() >= 0
        assert found.heat.max() == 1
        assert heat_near(found, left, top) > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_of_two_objects_each_class_has_its_own(method: Method, trained: convnext.Predictor) -> None:
    image = scene(np.random.default_rng(2), (0, 2, 2), (2, 22, 22))
    red, blue = (trained.explain(image, name, method) for name in ("red", "blue"))
    assert heat_near(red, 2, 2) > 0.6
    assert heat_near(blue, 22, 22) > 0.6
    assert red.probability + blue.probability <= 1


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_give_another_map(method: Method, trained: convnext.Predictor) -> None:
    image = scene(np.random.default_rng(3), (0, 2, 2))
    untrained = predictor(seed=1, depths=(1, 1), dims=(16, 32), patch_size=2, layer_scale=1.0, init="torch")
    maps = [one.explain(image, "red", method).heat for one in (trained, untrained)]
    assert np.abs(maps[0] - maps[1]).mean() > 0.1


def test_every_stage_has_a_map_of_its_own(trained: convnext.Predictor) -> None:
    image = scene(np.random.default_rng(4), (1, 22, 2))
    fine, coarse = (trained.explain(image, stage=stage) for stage in (0, 1))
    assert (fine.method, coarse.method) == ("grad-cam, stages.0", "grad-cam, stages.1")
    assert np.array_equal(coarse.heat, trained.explain(image).heat)
    assert np.abs(fine.heat - coarse.heat).mean() > 0.02
    with pytest.raises(SettingsError, match=r"stage: the model has 0 to 1 here, .* or -1 to -2 from the end, got 2"):
        trained.explain(image, stage=2)


@pytest.mark.parametrize(
    ("name", "settings", "module"),
    [
        ("convnextv2_atto", {"depths": (1, 1), "dims": (8, 16)}, "stages.1"),
        ("roadmap", {"step": 0, "depths": (1, 1), "dims": (6, 12)}, "stages.1"),
        ("roadmap", {"step": 15, "depths": (1, 1), "dims": (6, 12)}, "stages.1"),
        ("resnet18", {"patch_size": 2}, "layer4"),
        ("swin_t", {"patch_size": 2}, "permute"),
        ("torchvision:mobilenet_v3_small", {}, "features.8"),
        ("timm:test_convnext", {}, "stages.2"),
    ],
)
def test_any_model_with_feature_maps(name: str, settings: dict[str, Any], module: str) -> None:
    one = predictor(name, **settings)
    image = scene(np.random.default_rng(5), (0, 2, 22))
    stages = range(-1, -2, -1) if name.startswith("t") else (-1, -2, 0)
    for number in stages:
        found = one.explain(image, "green", stage=number)
        assert found.heat.shape == (SIDE, SIDE)
        assert 0 <= found.heat.min() <= found.heat.max() <= 1
        if number == -1:
            assert found.method == f"grad-cam, {module}"


def test_maps_with_channels_last_are_explained_as_others() -> None:
    torch.manual_seed(0)
    convolution, head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 3)

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return head(x.mean((2, 3)))  # type: ignore[no-any-return]

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return head(x.mean((1, 2)))  # type: ignore[no-any-return]

    models = nn.Sequential(convolution, First()), nn.Sequential(convolution, Permute([0, 2, 3, 1]), Last())
    images = [torch.zeros(1, 3, SIDE, SIDE)] * 2
    assert [stages(*pair)[0].channels_last for pair in zip(models, images, strict=True)] == [False, True]
    info, image = predictor().info, scene(np.random.default_rng(6), (0, 2, 2))
    maps = [convnext.Predictor(model, info, "cpu").explain(image).heat for model in models]
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)
    assert maps[0].std() > 0.05


def test_our_kernels_give_the_same_map(trained: convnext.Predictor) -> None:
    image = scene(np.random.default_rng(7), (2, 22, 22))
    plain = [trained.explain(image, method=method).heat for method in METHODS]
    kernels.install(trained.model)
    try:
        assert kernels.installed(trained.model)
        for method, heat in zip(METHODS, plain, strict=True):
            np.testing.assert_allclose(trained.explain(image, method=method).heat, heat, atol=1e-3)
    finally:
        kernels.remove(trained.model)


def test_the_heat_lies_where_the_model_looked_in_the_whole_image(trained: convnext.Predictor, tmp_path: Path) -> None:
    image = scene(np.random.default_rng(8), (0, 2, 2))
    wide = np.zeros((SIDE * 2, SIDE * 4, 3), np.uint8)
    wide[:, SIDE : 3 * SIDE] = image.repeat(2, 0).repeat(2, 1)
    found = trained.explain(wide)
    assert (found.image.size, found.box) == ((128, 64), (32, 0, 96, 64))
    assert heat_near(found, 2, 2) > 0.6
    assert np.abs(found.heat - trained.explain(image).heat).mean() < 0.1
    found.save(tmp_path / "map.png")
    picture = Image.open(tmp_path / "map.png")
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(found.picture()))
    assert picture.width > 2 * picture.height
    assert trained.explain(np.zeros((1000, 1, 3), np.uint8)).picture().height > 300
    with pytest.raises(UserError, match=r"folder .*nowhere is not there"):
        found.save(tmp_path / "nowhere" / "map.png")


def test_an_exported_file_is_explained_without_gradients(
    digits_run: convnext.Run, digits_images: Path, tmp_path: Path
) -> None:
    image = next((digits_images / "test" / "3").iterdir())
    expected = convnext.Predictor.load(digits_run.path).explain(image, method="occlusion")
    path = export(digits_run.path, output=tmp_path / "model.onnx", include_preprocessing=True).path
    exported = convnext.Predictor.load(path)
    found = exported.explain(image, method="occlusion")
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-3)
    assert (found.class_name, found.box) == (expected.class_name, expected.box)
    gradients: tuple[Method, ...] = ("grad-cam", "integrated-gradients")
    for method in gradients:
        with pytest.raises(SettingsError, match=f"{method} needs gradients, which onnxruntime does not give"):
            exported.explain(image, method=method)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"method": "gradcam"}, "no method of explanation is called 'gradcam': did you mean grad-cam"),
        ({"class_name": "gren"}, "the model has no class 'gren': did you mean green"),
        ({"method": "occlusion", "stage": 0}, "occlusion looks at the whole model"),
    ],
)
def test_what_cannot_be_explained_is_one_line(words: dict[str, Any], message: str, trained: convnext.Predictor) -> None:
    with pytest.raises(SettingsError, match=message):
        trained.explain(scene(np.random.default_rng(9)), **words)


def test_a_model_without_feature_maps_says_so() -> None:
    vit = predictor("timm:test_vit")
    vit.info = vit.backend.info = vit.info.model_copy(update={"image_size": 160})
    image = scene(np.random.default_rng(9))
    with pytest.raises(SettingsError, match="grad-cam needs feature maps, and the model has none: choose occlusion"):
        vit.explain(image)
    assert vit.explain(image, method="occlusion").heat.shape == (160, 160)
