"""A decorator is all that a model needs; what is stated of a model is what it is."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext import create_model, evaluate
from convnext.cli import main
from convnext.config import ModelSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.models import registry
from convnext.models.registry import register_model, resolve
from convnext.models.summary import count_gmacs, count_parameters
from convnext.models.variants import VARIANTS, convnext_cost

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.mark.parametrize("name", convnext.list_models())
def test_stated_figures_are_those_of_the_model(name: str) -> None:
    entry = registry.entries()[name]
    with torch.device("meta"):
        model = registry.build(ModelSettings(name=name), 1000)
    assert entry.parameters == count_parameters(model)
    assert entry.gmacs == pytest.approx(count_gmacs(model), abs=0.0006)
    assert entry.source


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("convnext_atto", {"overlap": True, "in_channels": 1, "patch_size": 2}),
        ("convnext_atto", {"depths": (1, 2), "dims": (8, 24), "kernel_size": 5, "mlp_ratio": 3, "layer_scale": None}),
        ("convnext_isotropic_small", {"stem_norm": True, "grn": True, "in_channels": 5}),
        ("convnext_atto", {"pool": True, "patch_size": 2, "kernel_size": 3}),
        ("convnext_atto", {"pool": True, "whitening": True, "in_channels": 1, "patch_size": 2, "stem_norm": False}),
        ("convnext_atto", {"pool": True, "whitening": True}),
        ("convnext_atto", {"whitening": True}),
        ("convnextv2_atto", {"patch_size": 3, "grn": False, "layer_scale": 1.0}),
    ],
)
@pytest.mark.parametrize("image_size", [32, 97])
def test_cost_by_formula_is_exact(name: str, changes: dict[str, object], image_size: int) -> None:
    settings = resolve(ModelSettings(name=name, **changes))
    with torch.device("meta"):
        model = registry.build(settings, 7)
    macs = round(1e9 * count_gmacs(model, image_size, settings.in_channels or 3))
    assert convnext_cost(settings, image_size, 7) == (count_parameters(model), macs)


@register_model("tests-mean")
class Mean(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, dims: tuple[int, ...] = (4,), width: int = 3) -> None:
        super().__init__()
        self.dims, self.width = dims, width
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((-2, -1)))
        return logits


def test_a_registered_model_takes_what_its_parameters_are_named_after() -> None:
    assert "tests-mean" in convnext.list_models()
    model = create_model("tests-mean", 5, in_channels=2, dims=(6, 7))
    assert isinstance(model, Mean)
    assert (model.dims, model.width, model.head.weight.shape) == ((6, 7), 3, (5, 2))
    default = create_model("tests-mean", 5)
    assert isinstance(default, Mean)
    assert (default.dims, default.head.in_features) == ((4,), 3)
    with pytest.raises(SettingsError, match=r"^model\.kernel_size: tests-mean has no such setting; .*model\.dims"):
        create_model("tests-mean", kernel_size=5)


def test_a_setting_that_a_model_does_not_take_is_refused_only_where_the_user_gave_it() -> None:
    with pytest.raises(SettingsError, match=r"^model\.depths: resnet18 has no such setting"):
        convnext.recipe("digits", **{"model.name": "resnet18", "model.depths": (1, 1, 2)})
    settings = convnext.recipe("digits", **{"model.name": "resnet18", "model.patch_size": 2})
    assert resolve(settings.model, 1) == ModelSettings(name="resnet18", patch_size=2, in_channels=1)


def test_names_of_others_are_not_taken() -> None:
    for name in ("convnext_tiny", "resnet18", "timm:mine"):
        with pytest.raises(SettingsError, match=f"the name '{name}' belongs to another model"):
            register_model(name)(Mean)
    with pytest.raises(TypeError, match="parameter 'depths' of needy needs a default"):

        @register_model("tests-needy")
        def needy(num_classes: int, depths: int) -> nn.Module:
            return nn.Linear(depths, num_classes)


DROPPED = '''"""One layer."""

from torch import nn

from convnext.models.registry import register_model


@register_model("tests-dropped", source="here", parameters=3_000)
def one_layer(num_classes: int, in_channels: int = 3) -> nn.Module:
    """Mean colour to logits."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
'''


def test_a_file_in_the_folder_is_all_that_a_model_needs(tmp_path: Path) -> None:
    (tmp_path / "dropped.py").write_text(DROPPED)
    code = (
        # The folder of models goes on in another, so that the test leaves the package's own alone.
        "import sys, convnext.models; convnext.models.__path__.append(sys.argv[1]); from convnext.cli import main\n"
        "main(['models']); assert 'torch' not in sys.modules\n"
        "main(['train', 'digits', '--model.name', 'tests-dropped', '--epochs', '1', '--output', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert "tests-dropped, in_channels 1, 20 parameters" in done.stderr
    assert "3,000" in next(line for line in done.stdout.splitlines() if "tests-dropped" in line)
    assert (tmp_path / "digits" / "test_report.json").exists()


def test_the_example_trains_and_its_run_is_used_where_it_is_registered(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    top1 = runpy.run_path(str(EXAMPLE))["main"](tmp_path, epochs=1)
    assert 0 <= top1 <= 1
    assert evaluate(tmp_path / "plainnet").top1 == pytest.approx(top1, abs=0.01)
    capfd.readouterr()
    code = "import sys; from convnext.cli import main; sys.exit(main(['inspect', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "plainnet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model: plainnet, depths 1 1, dims 16 32, in_channels 1" in done.stdout
    assert "no model is called 'plainnet'" in done.stdout


@pytest.mark.parametrize("command", [["models"], ["recipes", "digits"], ["recipes", "imagenette"], ["--help"]])
def test_tables_come_without_torch(command: list[str]) -> None:
    code = f"import sys; from convnext.cli import main; status = main({command}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if command == ["models"]:
        lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
        assert lines.keys() >= {*VARIANTS, "resnet18", "roadmap"}
        assert "28,589,128" in lines["convnext_tiny"]
        assert "4.49" in lines["swin_t"]


def test_tables_of_other_sizes_and_of_libraries(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--image-size", "64"]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if "resnet50" in line)
    assert "0.34" in line
    assert main(["models", "--library", "torchvision"]) == 0
    assert "torchvision:resnext50_32x4d" in capfd.readouterr().out.split()
    assert main(["models", "resnet50", "--library", "timm"]) == 2
    assert "and resnet50 is one model: give timm:resnet50, or leave it out" in capfd.readouterr().err


def test_weights_of_other_models_are_files_under_their_own_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("resnet18", "roadmap"):
        start = create_model(name, 4)
        path = tmp_path / f"{name}.pth"
        torch.save(start.state_dict(), path)
        again = create_model(name, 4, weights=str(path)).state_dict()
        assert all(torch.equal(tensor, again[key]) for key, tensor in start.state_dict().items())
        other = create_model(name, 6, weights=str(path)).state_dict()
        assert "the classifier of 4 classes is left out" in capfd.readouterr().err
        body = [key for key in again if not key.startswith(("fc", "head"))]
        assert all(torch.equal(other[key], again[key]) for key in body)
    with pytest.raises(SettingsError, match=r"nobody released weights 'in1k' of resnet18"):
        create_model("resnet18", weights="in1k")
    with pytest.raises(CheckpointError, match=r"cannot use .*roadmap\.pth: it is for another model"):
        create_model("resnet18", 4, weights=str(tmp_path / "roadmap.pth"))
