"""Checkpoints as others write them: keys, prefixes, averages, losses beside the weights, and what is no checkpoint."""

import random
import re
from argparse import Namespace
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convnext import create_model
from convnext.config import ModelSettings
from convnext.errors import CheckpointError, UserError
from convnext.models.convnext import ConvNeXt
from convnext.weights.files import read_convnext
from convnext.weights.layouts import LAYOUTS, convert, names_of_layouts
from convnext.weights.loading import start_from
from convnext.weights.wrappers import Extract, extract, names_of

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(num_classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("convnext_tiny", num_classes, depths=(1, 2), dims=(8, 16), head_init_scale=100.0)
    return model.eval()


@cache
def state(seed: int = 0) -> dict[str, Tensor]:
    return dict(small(seed=seed).state_dict())


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def taken(checkpoint: object, key: str | None = None) -> Extract:
    return extract(checkpoint, names_of_layouts(), key)


def logits(weights: Extract) -> Tensor:
    model = small(seed=9)
    model.load_state_dict(convert(weights.tensors, "official", weights.layout))
    with torch.inference_mode():
        result: Tensor = model(IMAGES)
    return result


def expected(seed: int = 0) -> Tensor:
    with torch.inference_mode():
        result: Tensor = small(seed=seed)(IMAGES)
    return result


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "isotropic"])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "_orig_mod.module.model.net.", "x."],
)
def test_any_common_prefix(layout: str, prefix: str) -> None:
    weights = taken(prefixed(prefix, convert(state(), layout)))
    assert (weights.layout, weights.notes) == (layout, [])
    assert torch.equal(logits(weights), expected())


def test_a_compiled_block_within_the_names() -> None:
    names = {name.replace("stages.0.0.", "stages.0.0._orig_mod."): tensor for name, tensor in state().items()}
    assert torch.equal(logits(taken(names)), expected())


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "weights", "params", "a.b"])
def test_any_key(key: str) -> None:
    checkpoint = {key: state(), "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}}
    weights = taken(checkpoint)
    assert (weights.key, weights.notes) == (key, [])
    assert torch.equal(logits(weights), expected())


def test_optimizer_states_by_name_are_no_weights() -> None:
    weights = taken({"model": state(), "optimizer": {"momentum_buffer": prefixed("", state(1))}})
    assert torch.equal(logits(weights), expected())


@pytest.mark.parametrize(
    ("average", "raw"),
    [("model_ema", "model"), ("state_dict_ema", "state_dict"), ("ema", "net"), ("ema_state_dict", "model_state_dict")],
)
def test_the_moving_average_beside_raw_weights(average: str, raw: str) -> None:
    checkpoint = {raw: state(), average: prefixed("module.", state(1))}
    weights = taken(checkpoint)
    assert torch.equal(logits(weights), expected(1))
    note = f"took the weights under '{average}.module' (a moving average), not '{raw}': see weights_key"
    assert weights.notes == [note]
    for key in (average, f"{average}.module"):
        assert torch.equal(logits(taken(checkpoint, key)), expected(1))
    assert torch.equal(logits(taken(checkpoint, raw)), expected())
    with pytest.raises(CheckpointError, match="and 0 under 'emma': choose by weights_key"):
        taken(checkpoint, "emma")


def test_pytorchs_averaged_model() -> None:
    average = AveragedModel(small())
    weights = taken({"model": state(1), "average": average.state_dict()})
    assert (weights.key, weights.averaged, weights.beside) == ("average.module", True, ())
    assert torch.equal(logits(weights), expected())


def test_one_dict_with_both() -> None:
    both = (
        prefixed("model.", state()) | prefixed("model_ema.module.", state(1)) | {"model_ema.decay": torch.tensor(0.9)}
    )
    weights = taken({"state_dict": both})
    assert (weights.key, weights.beside) == ("state_dict.model_ema.module", ())
    assert torch.equal(logits(weights), expected(1))
    assert torch.equal(logits(taken({"state_dict": both}, "state_dict.model")), expected())


def test_several_that_nothing_chooses_between() -> None:
    students = prefixed("student.", state()) | prefixed("teacher.", state(1))
    with pytest.raises(CheckpointError, match="weights under 'student', 'teacher': choose by weights_key"):
        taken(students)
    assert torch.equal(logits(taken(students, "teacher")), expected(1))
    assert torch.equal(logits(taken({"state_dict": state(), "model": dict(state())})), expected())  # the same twice


def test_a_losss_weights_are_left_out_and_named() -> None:
    weights = taken({"state_dict": prefixed("model.", state()) | {"criterion.weight": torch.ones(5)}})
    assert weights.notes == ["left out criterion.weight"]
    assert torch.equal(logits(weights), expected())
    assert taken(state() | {"criterion.weight": torch.ones(5), "steps": torch.tensor(3)}).notes == [
        "left out criterion.weight"
    ]


def test_what_is_beside_in_plain_containers_is_no_obstacle(tmp_path: Path) -> None:
    arguments = Namespace(lr=np.float64(0.1), depths=np.int64(3))
    torch.save({"best": np.float32(0.5), "args": arguments, "model": OrderedDict(state())}, tmp_path / "a.ckpt")
    assert torch.equal(logits(read_convnext(tmp_path / "a.ckpt")), expected())


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.ckpt", "a"])
def test_contents_decide_and_not_the_suffix(name: str, tmp_path: Path) -> None:
    save_file(state(), tmp_path / name)
    assert torch.equal(logits(read_convnext(tmp_path / name)), expected())
    torch.save(state(), tmp_path / "b.safetensors")
    torch.save(state(), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for other in ("b.safetensors", "c.pth"):
        assert torch.equal(logits(read_convnext(tmp_path / other)), expected())


def backbones() -> dict[str, nn.Module]:
    sizes: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    config = transformers.ConvNextConfig(hidden_sizes=sizes["dims"], depths=sizes["depths"])
    return {
        "transformers": transformers.ConvNextModel(config),
        "timm": timm.create_model("convnext_tiny", num_classes=0, **sizes),
    }


@pytest.mark.parametrize("library", ["transformers", "timm"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_bare_backbones(library: str, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    backbone = backbones()[library]
    torch.save(prefixed(prefix, backbone.state_dict()), tmp_path / "backbone.pth")
    settings = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    model = create_model("convnext_tiny", 7, **settings)
    note = start_from(model, ModelSettings(name="convnext_tiny", weights=str(tmp_path / "backbone.pth"), **settings), 7)
    assert note == f"{tmp_path}/backbone.pth: it has no classifier: the model's own, of 7, starts from random weights"
    assert isinstance(model, ConvNeXt)
    with torch.inference_mode():
        theirs = backbone.eval()(IMAGES)
        theirs = getattr(theirs, "pooler_output", theirs)
        torch.testing.assert_close(model.eval().embed(IMAGES), theirs, atol=1e-4, rtol=1e-4)


def test_other_models_under_their_own_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = create_model("resnet18", 3)
    torch.save({"state_dict": prefixed("module.", theirs.state_dict()) | {"loss.w": torch.ones(1)}}, tmp_path / "r.pth")
    ours = create_model("resnet18", 3)
    settings = ModelSettings(name="resnet18", weights=str(tmp_path / "r.pth"))
    assert start_from(ours, settings, 3) == f"{tmp_path}/r.pth: left out loss.w"
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert "classifier of 3 classes is left out" in (start_from(create_model("resnet18", 64), settings, 64) or "")
    torch.save(state(), tmp_path / "r.pth")
    with pytest.raises(
        CheckpointError, match=r"for another model: it has downsample_layers.*, and this one conv1\.weight"
    ):
        start_from(ours, settings, 3)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"optimizer": {}, "epoch": 3}, "no tensors in it: it is a dict with 'optimizer', 'epoch'"),
        ({}, "no tensors in it: it is a dict"),
        (None, "no tensors in it: it is a NoneType"),
        (torch.ones(3), "no known layout of a ConvNeXt has ; known: official, isotropic"),
        ({"a.weight": torch.ones(3), "b": [torch.ones(1)]}, "no known layout of a ConvNeXt has a.weight, b.0; known:"),
        ({"model": {"head.weight": torch.ones(1), "epoch": 3}}, "no known layout of a ConvNeXt has model.head.weight"),
        (
            {"net": {"stem.0.weight": torch.ones(1)}},
            "no known layout of a model fits under 'net': timm, but not all of it",
        ),
        (state() | {"stages.7": torch.ones(1)}, "no known layout of a model fits: official but for stages.7"),
        (state() | {"head.fc1.weight": torch.ones(1)}, "official but for head.fc1.weight"),
        ({name: tensor.to_sparse() for name, tensor in state().items()}, "no tensors in it"),
    ],
)
def test_what_has_no_weights(checkpoint: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        taken(checkpoint)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["convnext_tiny_hnf", "convnext_atto_ols", "convnext_large_mlp"])
def test_timm_variants_of_another_architecture_are_not_taken_in_part(name: str) -> None:
    with torch.device("meta"):
        meta = timm.create_model(name).state_dict()
    with pytest.raises(CheckpointError, match="no known layout of a model fits: timm"):
        taken({key: torch.zeros(1).expand(tensor.shape) for key, tensor in meta.items()})


def test_a_circle_of_containers_and_great_depth() -> None:
    circle: dict[str, Any] = {"weights": state()}
    circle["self"] = circle
    assert torch.equal(logits(taken(circle)), expected())
    deep: Any = state()
    for _ in range(5000):
        deep = {"x": deep}
    with pytest.raises(CheckpointError, match="no tensors in it"):
        taken(deep)


def test_weights_that_are_no_floats_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"head\.bias has torch\.int64"):
        start_from_state(state() | {"head.bias": torch.ones(5, dtype=torch.int64)})


def start_from_state(weights: dict[str, Tensor]) -> None:
    from convnext.weights.loading import load_state

    load_state(small(), weights, "weights.pth")


# Fuzzing

KEYS = ("state_dict", "model", "net", "weights", "checkpoint", "0", "a.b", "très", "best")
JUNK: tuple[Any, ...] = (
    3,
    "text",
    None,
    0.5,
    [1, 2],
    {"lr": 0.1},
    torch.ones(2),
    torch.tensor(3),
    {"x": torch.ones(1, 1)},
)


def wrapped(rng: random.Random, weights: dict[str, Tensor]) -> Any:
    """The weights under random prefixes and keys, among random other things."""
    prefix = "".join(
        f"{rng.choice(('module', '_orig_mod', 'model', 'net', 'backbone', 'q'))}." for _ in range(rng.randrange(4))
    )
    checkpoint: Any = prefixed(prefix, weights)
    for _ in range(rng.randrange(3)):
        checkpoint[f"{rng.choice(('loss', 'criterion', 'metric'))}.{rng.randrange(9)}"] = rng.choice(JUNK)
    for _ in range(rng.randrange(5)):
        items = [(rng.choice(KEYS), checkpoint), *((f"junk{n}", rng.choice(JUNK)) for n in range(rng.randrange(4)))]
        rng.shuffle(items)
        checkpoint = [value for _, value in items] if rng.random() < 0.2 else dict(items)
    return checkpoint


@pytest.mark.parametrize("layout", ["official", "torchvision", "timm", "transformers"])
def test_random_wrappers_around_weights(layout: str) -> None:
    rng = random.Random(layout)
    for _ in range(50):
        weights = taken(wrapped(rng, convert(state(), layout)))
        assert weights.layout == layout
        assert torch.equal(logits(weights), expected())


def test_random_wrappers_around_garbage(tmp_path: Path) -> None:
    rng = random.Random(0)
    official = list(state())
    for trial in range(100):
        names = rng.sample(official, rng.randrange(len(official) - 4))  # some are missing, and the rest misnamed
        garbage = {
            name if rng.random() < 0.5 else f"{name}{rng.choice('xyz')}": rng.choice((*JUNK, state()[name]))
            for name in names
        }
        path = tmp_path / f"{trial}.pth"
        torch.save(wrapped(rng, garbage), path)
        with pytest.raises(UserError) as error:
            load(path)
        assert "\n" not in str(error.value)


def test_random_bytes_and_damaged_files(tmp_path: Path) -> None:
    rng = random.Random(0)
    torch.save({"model": state()}, tmp_path / "whole.pth")
    save_file(state(), tmp_path / "whole.safetensors")
    for trial in range(60):
        whole = (tmp_path / rng.choice(("whole.pth", "whole.safetensors"))).read_bytes()
        damaged = rng.randbytes(rng.randrange(400)) if trial % 3 == 0 else whole[: rng.randrange(len(whole))]
        if trial % 3 == 1:  # a changed header
            damaged = rng.randbytes(rng.randrange(1, 40)) + whole[40:]
        path = tmp_path / f"damaged{trial}.{rng.choice(('pth', 'safetensors'))}"
        path.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            load(path)
        assert "\n" not in str(error.value)


def load(path: Path) -> None:
    settings = ModelSettings(name="convnext_tiny", depths=(1, 2), dims=(8, 16), weights=str(path))
    start_from(small(), settings, 5)


def test_names_of_a_model() -> None:
    model = torchvision.models.resnet18()
    assert extract({"a": model.state_dict()}, [names_of(model.state_dict())]).key == "a"
