"""The recipes: each can be trained and says what it reproduces; what is chosen by the data is chosen the same again."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convnext
from convnext import recipe, recipes
from convnext.cli import main
from convnext.commands import train as command
from convnext.config import DataSettings, RunSettings
from convnext.data.datasets.catalogue import DATASETS
from convnext.evaluation.metrics import compute_report
from convnext.models import registry
from convnext.models.summary import count_gmacs, count_parameters
from convnext.recipes.common.cost import cost

PUBLISHED = {
    "imagenette160-tiny": ({"convnext_tiny": 83.389}, "top-1"),
    "imagenette160-tiny-jitter": ({"convnext_tiny": 85.885}, "top-1"),
    "imagenette160-tiny-bs64": ({"convnext_tiny": 83.312}, "top-1"),
    "imagenette160-small": ({"convnext_small": 85.172}, "top-1"),
    "cifar10-64px": ({"convnext_tiny": 0.92}, "F1"),
    "tiny-imagenet-64px": ({"convnext_tiny": 0.64}, "F1"),
    "food101-tiny": ({"convnext_tiny": 74}, "top-1"),
    "tiny-imagenet-40ep": ({"convnext_tiny": 60.17, "resnet50": 54.72}, "top-1"),
    "imagenet1k-tiny": ({"convnext_tiny": 82.1}, "top-1"),
    "imagenet1k-small": ({"convnext_small": 83.1}, "top-1"),
    "imagenet1k-base": ({"convnext_base": 83.8}, "top-1"),
    "imagenet1k-large": ({"convnext_large": 84.3}, "top-1"),
}
OURS = {
    *(
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar10-fast",
        "cifar10-wide",
        "cifar100",
        "caltech101",
        "caltech256",
        "mini-imagenet",
    ),
    *("tiny-imagenet", "tiny-imagenet-fast", "tiny-imagenet-long", "imagenette", "folder"),
}

# One epoch of one block on tiny images, under what else a recipe has.
SHORT: dict[str, Any] = {"recipe": "", "name": "short", "epochs": 1, "batch_size": 16, "trackers": ()}
SHORT |= {"model.name": "convnext_atto", "model.depths": (1,), "model.dims": (8,), "model.patch_size": 4}
SHORT |= {"model.weights": None, "model.kernel_size": 3, "model.stochastic_depth": 0.0}
SHORT |= {"data": DataSettings(image_size=16, start_size=8, workers=0, val_fraction=0.0)}


def build(settings: RunSettings) -> torch.nn.Module:
    entry = DATASETS[settings.data.name]
    with torch.device("meta"):
        return registry.build(settings.model, entry.classes or 10)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_what_it_is_and_builds_its_model(name: str) -> None:
    known = recipes.get(name)
    assert 20 <= len(known.summary) <= 110
    assert known.summary.endswith(".")
    assert f"Command: ``convnext train {name}" in known.docs
    settings = recipe(name)
    registry.check_image_size(registry.resolve(settings.model), settings.data.first_size)
    assert count_gmacs(build(settings), settings.data.image_size) > 0
    assert (known.published is None) == (name in OURS)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipes_data_can_be_divided_and_batched_as_it_asks(name: str) -> None:
    settings = recipe(name)
    entry = DATASETS[settings.data.name]
    if entry.classes is None:
        return
    held_out = entry.splits["train"] * settings.data.val_fraction
    assert held_out == 0 or held_out >= entry.classes  # one of each class, or it is no stratified split
    assert settings.batch_size <= entry.splits["train"] - held_out
    if known := recipes.get(name).published:
        assert known.values.keys() & {settings.model.name}
        assert settings.data.val_fraction == 0  # others trained on all images


# One recipe of each augmentation; the others differ in model, data and rates.
DISTINCT = {recipe(name).augment.model_dump_json(): name for name in recipes.names()}


@pytest.mark.parametrize("name", sorted(DISTINCT.values()))
def test_no_recipe_has_an_impossible_combination(name: str, small_folder: Path, tmp_path: Path) -> None:
    settings = recipe(name).replace(**SHORT, output=tmp_path).replace(**{"data.root": small_folder})
    assert np.isfinite(convnext.train(settings).report.loss)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    published = recipes.get(name).published
    assert published is not None
    assert (dict(published.values), published.metric) == PUBLISHED[name]
    assert published.source


@pytest.mark.parametrize(
    ("name", "top1"),
    [
        ("imagenet1k-finetune-384", (84.1, 85.8, 86.8, 87.5, 87.8)),
        ("imagenet1k-xlarge-22k-ft", (82.9, 84.6, 85.8, 86.6, 87.0)),
    ],
)
def test_published_fine_tuned_numbers(name: str, top1: tuple[float, ...]) -> None:
    published = recipes.get(name).published
    assert published is not None
    models = [f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")]
    assert dict(published.values) == dict(zip(models, top1, strict=True))
    assert published.text("convnext_xlarge") == f"{top1[-1]} % top-1, val"


def test_settings_of_the_paper() -> None:
    for size, drop_path in (("tiny", 0.1), ("small", 0.4), ("base", 0.5), ("large", 0.5)):
        settings = recipe(f"imagenet1k-{size}")
        assert (settings.model.name, settings.model.stochastic_depth) == (f"convnext_{size}", drop_path)
        assert (settings.epochs, settings.batch_size, settings.peak_lr, settings.ema_decay) == (300, 4096, 4e-3, 0.9999)
        optimizer, augment = settings.optimizer, settings.augment
        assert (optimizer.weight_decay, optimizer.warmup_epochs, optimizer.betas) == (0.05, 20, (0.9, 0.999))
        assert (augment.mixup, augment.cutmix, augment.mix_probability, augment.random_erasing) == (0.8, 1.0, 1.0, 0.25)
        assert settings.label_smoothing == 0.1
        assert registry.resolve(settings.model).layer_scale == 1e-6


def test_settings_of_the_papers_fine_tuning() -> None:
    settings = recipe("imagenet1k-xlarge-22k-ft")
    assert (settings.model.name, settings.model.weights, settings.data.image_size) == ("convnext_xlarge", "in22k", 224)
    assert (settings.epochs, settings.batch_size, settings.peak_lr) == (30, 512, 5e-5)
    assert (settings.optimizer.layer_decay, settings.optimizer.weight_decay, settings.warmup_epochs) == (0.8, 1e-8, 0)
    assert (settings.augment.mixup, settings.augment.cutmix, settings.model.head_init_scale) == (0, 0, 0.001)
    for name, drop_path, ema in (("tiny", 0.0, None), ("base", 0.2, None), ("xlarge", 0.4, 0.9999)):
        for kind in ("imagenet1k-xlarge-22k-ft", "imagenet1k-finetune-384"):
            settings = recipe(kind, **{"model.name": f"convnext_{name}"})
            assert (settings.model.stochastic_depth, settings.ema_decay) == (drop_path, ema)
    assert recipe("imagenet1k-finetune-384").data.image_size == 384
    mine = recipe("imagenet1k-finetune-384", **{"model.name": "convnext_tiny", "model.stochastic_depth": 0.3})
    assert mine.model.stochastic_depth == 0.3


def test_settings_of_the_small_images() -> None:
    settings = recipe("cifar10-64px")
    assert (settings.model.patch_size, settings.model.depths) == (1, (2, 2, 2, 2))
    assert settings.model.dims == (64, 128, 256, 512)
    assert count_parameters(build(settings)) == pytest.approx(6.4e6, rel=0.02)
    assert (settings.epochs, settings.batch_size, settings.data.image_size) == (100, 256, 64)
    assert (settings.peak_lr, settings.optimizer.weight_decay, settings.label_smoothing) == (1e-3, 0.1, 0.1)
    augment = settings.augment
    assert (augment.mixup, augment.cutmix, augment.mix_probability, augment.random_erasing) == (0.8, 1.0, 0.4, 0.25)
    assert (augment.policy, augment.randaugment_ops, augment.randaugment_magnitude) == ("randaugment", 2, 9)
    settings = recipe("tiny-imagenet-64px")
    assert (settings.model.patch_size, settings.model.depths) == (2, (3, 3, 9, 3))
    assert (settings.peak_lr, settings.optimizer.weight_decay, settings.batch_size) == (2e-3, 0.05, 128)
    assert (settings.augment.mix_probability, settings.model.stochastic_depth, settings.epochs) == (0.6, 0.1, 100)
    settings = recipe("tiny-imagenet-40ep")
    assert (settings.augment.policy, settings.epochs) == ("autoaugment", 40)


def test_settings_of_imagenette_and_food() -> None:
    tiny = recipe("imagenette160-tiny")
    assert (tiny.epochs, tiny.batch_size, tiny.data.image_size, tiny.model.stochastic_depth) == (100, 32, 160, 0.1)
    jitter = recipe("imagenette160-tiny-jitter")
    assert (jitter.augment.color_jitter, jitter.label_smoothing) == (0.5, 0.2)
    assert recipe("imagenette160-tiny-bs64").batch_size == 64
    assert recipe("imagenette160-small").model.name == "convnext_small"
    food = recipe("food101-tiny")
    assert (food.peak_lr, food.batch_size, food.epochs, food.warmup_epochs) == (4e-3 * 256 / 4096, 256, 100, 20)
    assert (food.optimizer.clip_norm, food.data.image_size) == (5, 224)


@pytest.mark.parametrize("name", ["resnet50", "swin_t", "roadmap", "convnextv2_atto", "convnext_isotropic_small"])
@pytest.mark.parametrize("kind", ["tiny-imagenet-40ep", "imagenette", "digits"])
def test_other_models_under_a_recipe(kind: str, name: str) -> None:
    settings = recipe(kind, **{"model.name": name})
    settings = settings.replace(**{"model.patch_size": 1} if settings.data.image_size < 32 else {})
    model = build(settings)
    logits = model(
        torch.empty(2, 3, max(settings.data.image_size, 32), max(settings.data.image_size, 32), device="meta")
    )
    assert logits.shape == (2, DATASETS[settings.data.name].classes)


def test_models_of_about_equal_operations_under_one_recipe() -> None:
    gmacs = []
    for name in ("convnext_tiny", "resnet18", "swin_t"):
        settings = recipe("cifar10-fast", **{"model.name": name})
        gmacs.append(count_gmacs(build(settings), settings.data.image_size))
    assert max(gmacs) < 1.4 * min(gmacs)


def test_cost_is_counted() -> None:
    tiny = cost(recipes.get("imagenet1k-tiny"))
    assert tiny.training == pytest.approx(3 * 2 * 4.46e9 * 1_281_167 * 300, rel=0.01)
    assert "28,589,128 parameters" in str(tiny)
    assert "Estimated, not measured" in str(tiny)
    digits = cost(recipes.get("digits"))
    assert digits.images == 1293  # what a run says that it trains on
    assert "28" not in str(digits).split("parameters")[0]


def test_growing_images_cost_less() -> None:
    grown, full = recipes.get("imagenette"), recipes.get("caltech256")
    assert grown.settings.data.start_size is not None
    known = cost(grown)
    assert known.images is not None
    assert known.training is not None
    assert 0.5 < known.training / (3 * known.forward * known.images * known.epochs) < 0.9
    assert cost(full).forward == pytest.approx(known.forward, rel=0.01)
    assert cost(recipes.get("folder")).training is None


@pytest.mark.parametrize("name", ["imagenette160-tiny", "tiny-imagenet-40ep", "digits", "folder"])
def test_showing_a_recipe(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 0
    out = capfd.readouterr().out
    assert "Cost: " in out
    assert f'"name": "{name}"' in out
    known = recipes.get(name)
    if known.published:
        assert f"Published, not run here: {known.published.text()}" in out
    assert all(f"Measured here: {measured}" in out for measured in known.measured)


def test_the_list_shows_numbers_without_importing_torch() -> None:
    code = "import sys; from convnext.cli import main; main(['recipes']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "83.389 % top-1, val" in lines["imagenette160-tiny"]
    assert "about 74 % top-1, test" in lines["food101-tiny"]
    assert "results/digits" in lines["digits"]


def test_a_run_ends_with_the_published_number_beside_its_own(tmp_path: Path) -> None:
    settings = recipes.get("imagenette160-tiny").settings
    report = compute_report(torch.eye(10)[:8], torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]), tuple("abcdefghij"))
    (line,) = command.numbers_beside(convnext.Run(tmp_path, settings, report, "val"))
    assert line.startswith("Published 83.389 % top-1, val (by others")
    assert line.endswith("not run here); this run 87.50 %, 4.11 above")


def test_the_number_of_other_images_is_not_compared(
    small_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["train", "imagenette160-tiny", "--data.name", "folder", "--data.root", str(small_folder), "--epochs", "1"]
    args += ["--model.depths", "1", "--model.dims", "8", "--data.image-size", "8", "--output", str(tmp_path)]
    assert main([*args, "--data.workers", "0", "--data.val-fraction", "0"]) == 0
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("Published"))
    assert line.startswith("Published 83.389 % top-1, val (by others")
    assert line.endswith("and not comparable to this run")


# Choosing by the data


def images(root: Path, width: int, height: int, count: int, suffix: str = "jpg") -> Path:
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{suffix}")
    return root


def choose(root: Path, **changes: Any) -> tuple[RunSettings, str]:
    given = {"data.root": root} | changes
    settings, notes = recipes.complete(recipes.get("folder").settings.replace(**given), recipes.given_names(given))
    assert recipes.complete(settings, recipes.given_names(given))[0] == settings
    assert settings == recipe("folder", **{"data.root": root}, **changes)
    return settings, "\n".join(notes)


def test_small_images_keep_their_size_and_have_three_stages(digits_images: Path) -> None:
    settings, notes = choose(digits_images)
    assert (settings.data.image_size, settings.model.patch_size) == (8, 1)
    assert (settings.model.depths, settings.model.dims) == ((1, 1, 2), (32, 64, 128))
    assert settings.augment.policy == "none"
    assert "1,293 images in 10 classes to train with, shorter side 8 px in the median" in notes
    assert "data.image_size 8: as large as the images are" in notes


@pytest.mark.parametrize(
    ("width", "height", "image_size", "patch_size"),
    [(20, 21, 20, 1), (28, 28, 32, 2), (40, 50, 40, 2), (84, 84, 64, 2), (300, 120, 128, 4), (200, 300, 128, 4)],
)
def test_resolution_and_stem_follow_the_images(
    width: int, height: int, image_size: int, patch_size: int, tmp_path: Path
) -> None:
    settings, _ = choose(images(tmp_path / "images", width, height, 10), **{"model.weights": "none"})
    assert (settings.data.image_size, settings.model.patch_size) == (image_size, patch_size)


def test_explicit_settings_win_and_the_others_follow(tmp_path: Path) -> None:
    root = images(tmp_path / "images", 90, 80, 12)
    assert choose(root)[0].model.patch_size == 2
    settings, notes = choose(root, **{"data.image_size": 224, "model.weights": "none"})
    assert (settings.data.image_size, settings.model.patch_size) == (224, 4)
    assert "data.image_size" not in notes
    settings, _ = choose(root, epochs=7, batch_size=5, ema_decay=0.5, **{"augment.policy": "randaugment"})
    assert (settings.epochs, settings.batch_size, settings.ema_decay) == (7, 5, 0.5)
    assert (settings.augment.policy, settings.augment.mixup) == ("randaugment", 0.0)
    settings, _ = choose(root, **{"data.image_size": 32, "model.dims": (8, 16), "model.depths": (1, 1)})
    assert (settings.model.depths, settings.model.dims, settings.model.patch_size) == ((1, 1), (8, 16), 4)
    settings, _ = choose(root, **{"model.name": "resnet50"})
    assert (settings.model.name, settings.model.depths, settings.model.patch_size) == ("resnet50", None, 2)
    settings, _ = choose(root, **{"model.name": "convnext_isotropic_small"})
    assert settings.model.patch_size == 16


def test_released_weights_are_fine_tuned(tmp_path: Path) -> None:
    root = images(tmp_path / "images", 90, 80, 12)
    settings, _ = choose(root, **{"model.name": "convnext_tiny", "model.weights": "in22k"})
    assert (settings.data.image_size, settings.model.patch_size, settings.model.depths) == (224, None, None)
    assert settings.epochs <= 30
    assert settings.peak_lr < 1e-3


def test_more_images_mean_fewer_epochs(tmp_path: Path) -> None:
    few, _ = choose(images(tmp_path / "few", 9, 9, 10, "png"))
    more, _ = choose(images(tmp_path / "more", 9, 9, 1000, "png"))
    assert few.epochs > more.epochs
    assert few.batch_size < more.batch_size
    assert few.ema_decay is not None
    assert more.ema_decay is not None
    assert few.ema_decay < more.ema_decay


def test_unreadable_images_do_not_stop_the_choice(tmp_path: Path) -> None:
    root = images(tmp_path / "images", 60, 50, 12)
    (root / "left" / "broken.jpg").write_text("no image")
    assert choose(root)[0].data.image_size == 64
    for path in root.rglob("*.jpg"):
        path.write_text("no image")
    settings, notes = choose(root)
    assert notes == ""
    assert settings == recipes.get("folder").settings.replace(**{"data.root": root, "model.weights": None})


def test_a_chosen_run_says_what_it_chose_and_can_go_on(
    small_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["train", "folder", "--data.root", str(small_folder), "--epochs", "2", "--output", str(tmp_path / "runs")]
    args += ["--data.workers", "0"]
    assert main(args) == 0
    err = capfd.readouterr().err
    assert "chosen by the data, 54 images in 3 classes" in err
    assert "model.patch_size 1: leaves the last stage 2x2 positions" in err
    assert main([*args, "--resume"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["folder"]


def test_a_value_that_the_user_gives_stays_also_where_it_is_the_recipes(digits_images: Path) -> None:
    default = recipes.get("folder").settings
    assert recipe("folder", **{"data.root": digits_images}).data.image_size != default.data.image_size
    insisted = recipe("folder", **{"data.root": digits_images}, data={"image_size": default.data.image_size})
    assert insisted.data.image_size == default.data.image_size
    depths = recipes.get("digits").settings.model.depths
    assert recipe("digits", model={"name": "convnext_atto"}).model.depths is None
    assert recipe("digits", model={"name": "convnext_atto", "depths": depths}).model.depths == depths
