"""Settings: validation in one line, changes by name, and a round trip through JSON."""

import pytest

from convnext import create_model, recipe, recipes
from convnext.cli import COMMANDS
from convnext.config import (
    AugmentSettings,
    DataSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
)
from convnext.config.base import Settings
from convnext.data.datasets.catalogue import DATASETS
from convnext.errors import HABITS, SettingsError
from convnext.models.registry import resolve
from convnext.runs.folder import flatten


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_survives_json(name: str) -> None:
    settings = recipe(name)
    assert RunSettings.model_validate_json(settings.model_dump_json()) == settings
    assert settings.recipe == settings.name == name


@pytest.mark.parametrize(
    "kind",
    [RunSettings, ModelSettings, DataSettings, AugmentSettings, LossSettings, OptimizerSettings],
    ids=lambda kind: kind.__name__,
)
def test_every_setting_has_its_sentence(kind: type[Settings]) -> None:
    for name, field in kind.model_fields.items():
        assert isinstance(field.default, Settings) or (field.description or "").endswith("."), name


def test_changes_by_name() -> None:
    settings = recipe("digits", epochs=5, model={"dims": (8, 16, 32)}, **{"optimizer.lr": 1e-3})
    assert (settings.epochs, settings.model.dims, settings.optimizer.lr) == (5, (8, 16, 32), 1e-3)
    assert settings.model.depths == recipe("digits").model.depths


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1, got 0"),
        ({"epoch": 3}, "no setting is called epoch: did you mean epochs"),
        ({"optimizer.lr": -1.0}, r"optimizer\.lr: input should be greater than 0, got -1\.0"),
        ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr: .*got nan"),
        ({"model.dim": (1,)}, r"no setting is called model\.dim: did you mean model\.dims"),
        ({"modle.dims": (1,)}, "no group of settings is called modle: did you mean model"),
        ({"model.dims": (8,)}, "one entry a stage each: got 3 depths .* and 1 dims"),
        ({"data.val_fraction": 1.0}, r"data\.val_fraction: input should be less than 1"),
        ({"gradient_accumulation": 65}, "65 micro-batches of a batch of 64 would be empty"),
        ({"data.sampler": "balanced", "loss.class_weights": "balanced"}, "are both balanced"),
        ({"lr": 1e-3}, r"no setting is called lr: did you mean optimizer\.lr\?"),
        (
            {"imgsz": 1, "epoch": 3},
            r"imgsz: did you mean data\.image_size\?; no setting is called epoch: did you",
        ),
        ({"model": "convnext_tiny"}, r"model is a group of settings, got 'convnext_tiny': did you mean model\.name\?"),
        ({"model": {"drop_path": 0.1}}, r"called model\.drop_path: did you mean model\.stochastic_depth\?"),
        ({"device": 0}, "device: input should be .*CUDA_VISIBLE_DEVICES"),
        ({"zzz": 0}, "no setting is called zzz: `convnext train RECIPE --help` shows them all"),
        ({"name": "a/b"}, "name: must be a plain folder name"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        recipe("digits", **changes)
    assert "\n" not in str(error.value)


def test_habits_lead_to_what_there_is() -> None:
    there = {*RunSettings.names(), *COMMANDS, *DATASETS, "num_classes"}
    assert {target for targets in HABITS.values() for target in targets.split()} <= there
    assert not HABITS.keys() & RunSettings.names()


def test_create_model_names_what_is_meant() -> None:
    with pytest.raises(SettingsError) as error:
        create_model("convnext_tiny", pretrained=True, num_clases=3, drop_path_rate=0.1)
    assert str(error.value) == (
        "no argument is called pretrained: did you mean weights?; no argument is called num_clases: did you mean "
        "num_classes?; no argument is called drop_path_rate: did you mean stochastic_depth?"
    )


def test_unknown_recipe_names_close_matches() -> None:
    with pytest.raises(SettingsError, match="no recipe is called 'cifar': did you mean cifar10"):
        recipe("cifar")


def test_learning_rate_scales_with_the_batch() -> None:
    settings = recipe("digits", batch_size=256, **{"optimizer.lr": 4e-3, "optimizer.reference_batch_size": 1024})
    assert settings.peak_lr == pytest.approx(1e-3)


def test_flatten_names_every_setting() -> None:
    flat = flatten(recipe("digits"))
    assert flat["model.dims"] == [32, 64, 128]
    assert flat["epochs"] == recipe("digits").epochs


def test_another_model_brings_its_own_depths_and_dims() -> None:
    assert recipe("digits", epochs=3).model.dims == (32, 64, 128)
    other = recipe("digits", **{"model.name": "convnextv2_atto"})
    assert (other.model.depths, other.model.dims, other.model.layer_scale) == (None, None, "variant")
    assert other.model.patch_size == 1
    given = recipe("digits", **{"model.name": "convnext_atto", "model.dims": (8, 16), "model.depths": (1, 1)})
    assert (given.model.depths, given.model.dims, given.model.layer_scale) == ((1, 1), (8, 16), 1.0)
    assert recipe("digits", **{"model.name": "roadmap"}).model.dims == (32, 64, 128)


def test_another_number_of_stages_doubles_the_dims() -> None:
    assert recipe("cifar10", **{"model.depths": (2, 2, 6, 2)}).model.dims == (64, 128, 256, 512)
    assert recipe("cifar10", **{"model.depths": (2, 6, 2)}).model.dims == (64, 128, 256)
    assert recipe("cifar10", **{"model.depths": (2, 6), "model.dims": (8, 24)}).model.dims == (8, 24)


def test_released_weights_bring_their_architecture() -> None:
    settings = recipe("cifar10", **{"model.name": "convnext_small", "model.weights": "in1k"}).model
    assert resolve(settings) == resolve(ModelSettings(name="convnext_small", weights="in1k", init="torch"))
    from_file = recipe("cifar10", **{"model.weights": "mine.pth"}).model
    assert resolve(from_file).dims == (64, 128, 256)
