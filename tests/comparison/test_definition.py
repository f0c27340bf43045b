"""What is compared, and with which settings."""

from typing import Any

import pytest

from convnext.comparison.definition import Contender, Definition, contenders, parse_vary
from convnext.errors import SettingsError


def made(**options: Any) -> dict[str, Contender]:
    return {each.label: each for each in contenders(Definition(**{"recipe": "cifar10", **options}))}


def test_without_models_it_is_the_recipes_own() -> None:
    (contender,) = made().values()
    assert contender.settings.model.depths == (1, 5, 2)
    assert contender.notes == ()


def test_every_model_meets_every_value() -> None:
    vary = parse_vary(["optimizer.lr=1e-3,2e-3", "--model.patch-size=1,2"])
    found = made(models=("convnext_atto", "resnet18"), vary=vary, given={"epochs": 3}, folds=2)
    assert list(found)[:2] == [
        "convnext_atto optimizer.lr=0.001 model.patch_size=1",
        "convnext_atto optimizer.lr=0.001 model.patch_size=2",
    ]
    assert len(found) == 8
    for contender in found.values():
        settings = contender.settings
        assert settings.epochs == 3
        assert contender.varied == {
            "optimizer.lr": settings.optimizer.lr,
            "model.patch_size": settings.model.patch_size,
        }
    names = {each.named("out", seed, fold).name for each in found.values() for seed in (0, 1) for fold in (0, 1)}
    assert len(names) == 32
    assert "resnet18-optimizer.lr=0.002-model.patch_size=1-seed1-fold0" in names


def test_one_setting_at_a_time() -> None:
    vary = parse_vary(["optimizer.lr=1e-3,2e-3", "model.overlap=false"])
    found = made(models=("convnext_tiny", "convnext_atto"), vary=vary, one_at_a_time=True)
    assert list(found)[:4] == [
        *("convnext_tiny", "convnext_tiny optimizer.lr=0.001", "convnext_tiny optimizer.lr=0.002"),
        "convnext_tiny model.overlap=False",
    ]
    assert len(found) == 8
    as_it_is = found["convnext_tiny"].settings
    assert as_it_is == next(iter(made(models=("convnext_tiny",)).values())).settings
    assert found["convnext_tiny model.overlap=False"].settings == as_it_is.replace(**{"model.overlap": False})
    with pytest.raises(SettingsError, match=r"convnext_tiny model\.overlap=True is as without it: leave it out"):
        made(vary={"model.overlap": ("true",)}, one_at_a_time=True)


def test_what_is_the_recipes_own_models_is_left_out_and_said() -> None:
    found = made(models=("convnext_atto", "swin_t", "timm:resnet18"))
    assert found["convnext_atto"].settings.model.dims is None
    assert "model.depths, model.dims" in found["convnext_atto"].notes[0]
    assert "model.init" not in found["convnext_atto"].notes[0]
    left_out, own = found["swin_t"].notes
    assert left_out.startswith("swin_t: the recipe's model.depths, model.dims")
    assert left_out.endswith("model.overlap are for its own model, and left out")
    assert own == "swin_t: the recipe has optimizer.name adamw, not muon, optimizer.lr 0.0005, not 0.004 for this model"
    assert "model.patch_size" in found["timm:resnet18"].notes[0]  # it has a stem of its own
    assert found["timm:resnet18"].named("out", 0, None).name == "timm-resnet18-seed0"


def test_what_is_given_stays_for_all() -> None:
    found = made(models=("convnext_atto", "swin_t"), given={"optimizer.lr": 3e-3, "model.patch_size": 1})
    for contender in found.values():
        assert contender.settings.optimizer.lr == 3e-3
        assert contender.settings.model.patch_size == 1


def test_steps_of_the_roadmap() -> None:
    found = made(models=("roadmap",), vary={"model.step": ("0", "15")})
    assert [each.settings.model.step for each in found.values()] == [0, 15]


def test_lists_and_none_can_be_varied() -> None:
    vary = parse_vary(["model.dims=8 16,16 32", "optimizer.clip_norm=none,1"])
    found = made(vary=vary, given={"model.depths": [1, 1]})
    assert [(each.settings.model.dims, each.settings.optimizer.clip_norm) for each in found.values()] == [
        *(((8, 16), None), ((8, 16), 1.0)),
        *(((16, 32), None), ((16, 32), 1.0)),
    ]
    assert next(iter(found)) == "convnext_tiny model.dims=8,16 optimizer.clip_norm=None"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"vary": {"optimizer.lr": ("1e-3", "0.001")}}, "optimizer.lr=0.001 is compared with itself"),
        ({"vary": {"epochs": ("1",)}, "given": {"epochs": 2}}, "epochs is given and varied"),
        ({"vary": {"optimizer.lr": ("1",)}, "learning_rates": (1.0,)}, "optimizer.lr is chosen by --learning-rates"),
        ({"models": ("timm:resnet18",), "vary": {"model.dims": ("1 2",)}}, "model.dims: timm:resnet18 has no such"),
        (
            {"models": ("torchvision:vit_b_16",)},
            "torchvision:vit_b_16 does not take images of 24 px",
        ),
        (
            {"models": ("convnext_atto",), "given": {"model.patch_size": 4}},
            "too small for the 4 stages of convnext_atto",
        ),
        ({"given": {"data.fold": 1}}, "data.fold: a comparison sets that itself"),
    ],
)
def test_what_cannot_be_compared(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        made(**options)
