"""Parameter groups, optimizers, and the average of the weights."""

import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer
from torch.optim.swa_utils import AveragedModel

from convnext.config import OptimizerSettings, RunSettings
from convnext.errors import CheckpointError, SettingsError
from convnext.models.convnext import ConvNeXt

_Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]

_NORMS = nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm
_BLOCKS_TOGETHER = 3  # blocks of a stage that share a learning rate under layer-wise decay, as in the authors' code


def configure(model: nn.Module, settings: RunSettings) -> None:
    """Freeze the first stages, and set activation checkpointing, as the settings ask; SettingsError where they ask it
    of another model than ConvNeXt, or of more stages than it has."""
    if not isinstance(model, ConvNeXt):
        for name in ("freeze", "checkpoint_activations"):
            if getattr(settings, name):
                raise SettingsError(f"{name} is for ConvNeXt, not {type(model).__name__}: leave it out")
        return
    if settings.freeze > len(model.stages):
        raise SettingsError(f"freeze: the model has {len(model.stages)} stages, got {settings.freeze}")
    model.checkpointing = settings.checkpoint_activations
    stem = [model.whitening] if settings.freeze else []
    for frozen in (*stem, *model.downsample_layers[: settings.freeze], *model.stages[: settings.freeze]):
        frozen.requires_grad_(False)


class MatrixMuon(Muon):
    """Muon for convolutions, too: to it a weight ``(D, C, H, W)`` is a matrix of ``D`` rows.

    Args:
        groups: of parameters, each dense in its memory format.
        relative: scale each matrix before a step to a root mean square of 1 over the norms of its rows, so that a step
            of learning rate ``lr`` turns it by about ``lr``, however long the run (Jordan 2024, arXiv:2404.00498).
        options: of Muon.
    """

    def __init__(self, groups: list[dict[str, Any]], relative: bool = False, **options: Any) -> None:
        # Muon takes nothing but matrices. What it is given here only passes its check.
        matrices = [group | {"params": [p.detach().flatten(1) for p in group["params"]]} for group in groups]
        super().__init__(matrices, **options)
        for group, own in zip(self.param_groups, groups, strict=True):
            group["params"] = own["params"]
        self._relative = relative

    def step(self, closure: Any = None) -> Any:
        """Take a step; see `torch.optim.Muon`."""
        if self._relative:
            self._scale()
        return super().step(closure)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _scale(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(math.sqrt(len(weight)) / torch.linalg.vector_norm(weight).clamp(min=1e-12))

    def _init_group(self, group: Any, parameters: list[Tensor], grads: list[Tensor], momenta: list[Tensor]) -> bool:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p, requires_grad=False).copy_(p.grad)
        super()._init_group(group, parameters, grads, momenta)
        for tensors in (parameters, grads, momenta):
            tensors[:] = map(_as_matrix, tensors)
        return False


def _as_matrix(weight: Tensor) -> Tensor:
    """A view of a weight with a row for each channel that goes out."""
    if not weight.is_contiguous():
        weight = weight.permute(0, 2, 3, 1)
    return weight.view(len(weight), -1)


def make_optimizers(model: nn.Module, settings: OptimizerSettings) -> list[Optimizer]:
    """Fused AdamW or SGD for all weights; or Muon for the linear layers of the blocks and, with ``muon_filters``, dense
    convolutions, with AdamW for the rest.

    Vectors (norms, biases, layer scale) are not decayed. Each group has an ``lr_scale``, its factor on
    `RunSettings.learning_rate`, which sets the groups' rates at every step. SettingsError for ``layer_decay`` and a
    model that is no ConvNeXt, and for Muon and one without such linear layers.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = _lr_scales(model, settings.layer_decay)
    if settings.norm_bias_lr_scale != 1:
        biases = [f"{name}.bias" for name, module in model.named_modules() if isinstance(module, _NORMS)]
        if not named.keys() & set(biases):
            raise SettingsError(
                f"optimizer.norm_bias_lr_scale: {type(model).__name__} has no norms with biases to train: leave it out"
            )
        scales |= {name: settings.norm_bias_lr_scale * scales.get(name, 1.0) for name in biases}

    def groups(parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
        alike: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            alike.setdefault((parameter.ndim > 1, scales.get(name, 1.0)), []).append(parameter)
        return [
            {"params": group, "weight_decay": settings.weight_decay * decayed, "lr_scale": scale}
            for (decayed, scale), group in alike.items()
        ]

    lr, momentum = settings.lr, settings.momentum
    if settings.name == "sgd":
        return [SGD(groups(named), lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)]
    matrices: dict[str, nn.Parameter] = {}
    if settings.name == "muon":
        heads = _heads(model)
        matrices = {name: p for name, p in named.items() if p.ndim == 2 and not name.startswith(heads)}
        if settings.muon_filters:
            matrices |= {name: p for name, p in named.items() if p.ndim == 4 and p.shape[1] > 1}
        if not matrices:
            kind = type(model).__name__
            raise SettingsError(
                f"optimizer.name: muon is for linear layers, and {kind} has none of them to train: use adamw"
            )
    rest = {name: parameter for name, parameter in named.items() if name not in matrices}
    adamw = AdamW(groups(rest), lr=lr, betas=settings.betas, fused=True)
    # Updates are scaled to the size of AdamW's, so that both share a learning rate (Liu et al. 2025, arXiv 2502.16982).
    options: dict[str, Any] = {"lr": lr, "momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
    muon_groups = groups(matrices)
    if settings.muon_relative_lr is not None:
        # A step of orthogonal columns, however many rows, is then as large as lr says, for rows of norm 1.
        options |= {"relative": True, "adjust_lr_fn": "original", "ns_steps": 3}
        for group in muon_groups:
            group |= {"weight_decay": 0.0, "lr_scale": group["lr_scale"] * settings.muon_relative_lr / lr}
    return [MatrixMuon(muon_groups, **options), adamw] if matrices else [adamw]


def _heads(model: nn.Module) -> tuple[str, ...]:
    """How the names of a head's parameters begin, the last linear layer among them, whatever a library calls that."""
    last = [f"{name}." for name, module in model.named_modules() if name and isinstance(module, nn.Linear)][-1:]
    return ("head", "fc", *last)


def _lr_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Factors on the learning rate by parameter: ``decay`` from each group of layers to the one before it.

    The groups, from the input on: the stem; in each stage every three blocks, the first with the downsampling before
    it; the last norm and the head (Liu et al. 2022, appendix A.2).
    """
    if decay == 1:
        return {}
    if not isinstance(model, ConvNeXt):
        raise SettingsError(f"optimizer.layer_decay is for ConvNeXt, not {type(model).__name__}: leave it at 1")
    first = [1]
    for stage in model.stages:
        first.append(first[-1] + math.ceil(len(list(stage.children())) / _BLOCKS_TOGETHER))

    def group(name: str) -> int:
        if match := re.match(r"downsample_layers\.(\d+)", name):
            return first[int(match[1])] if int(match[1]) else 0
        if match := re.match(r"stages\.(\d+)\.(\d+)", name):
            return first[int(match[1])] + int(match[2]) // _BLOCKS_TOGETHER
        return first[-1]

    return {name: decay ** (first[-1] - group(name)) for name, _ in model.named_parameters()}


def set_learning_rate(optimizers: Iterable[Optimizer], lr: float) -> None:
    """Set every group's rate to ``lr`` times its ``lr_scale``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]


def begin_momentum(optimizers: Iterable[Optimizer]) -> None:
    """Let momentum begin at 0 before the first step: where the device decides that there is none, SGD would keep what
    it has not written, and Muon what is not finite."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("momentum") else ():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


@torch.no_grad()
def step_where(optimizers: Iterable[Optimizer], flag: Tensor) -> None:
    """A step of each where ``flag``, one boolean on the device, is true; else nothing changes. It is not waited for."""
    skip = (~flag).float()
    for optimizer in optimizers:
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = skip  # type: ignore[attr-defined]  # its kernel looks at it
            optimizer.step()
            continue
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        tensors = [x for p in parameters for x in (p, *optimizer.state[p].values())]
        before = [tensor.clone() for tensor in tensors]
        optimizer.step()
        for tensor, old in zip(tensors, before, strict=True):
            torch.where(flag, tensor, old, out=tensor)


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state as flat names: ``optimizer.<parameter>.<what>``."""
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizers(model: nn.Module, optimizers: Iterable[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` gave, without learning rates; CheckpointError where it is of another model."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            parameter_name, _, key = name.removeprefix("optimizer.").rpartition(".")
            states.setdefault(parameter_name, {})[key] = tensor
    owners = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        for key, value in states.pop(name, {}).items():
            if id(parameter) not in owners or value.shape not in (parameter.shape, torch.Size([])):
                states[name] = {}
                break
            # Fused kernels walk parameter and state together, so both need the same memory format and device.
            owners[id(parameter)].state[parameter][key] = (
                torch.empty_like(parameter, requires_grad=False).copy_(value)
                if value.shape == parameter.shape
                else value.to(parameter.device)
            )
    if states:
        raise CheckpointError(
            f"training.safetensors holds the optimizer of another model: it is not this run's ({next(iter(states))})"
        )
    if any(len({frozenset(state) for state in optimizer.state.values()}) > 1 for optimizer in owners.values()):
        raise CheckpointError("training.safetensors lacks some of the optimizer's state: it is not as it was written")


def ema_decay(updates: int, decay: float) -> float:
    """Decay after ``updates`` updates: low at first, so that the average forgets the random initial weights."""
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage(AveragedModel):
    """An exponential moving average of a model's weights and buffers, warmed up by `ema_decay`.

    Args:
        model: to start from.
        decay: in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self.requires_grad_(False)
        self.n_averaged = self.n_averaged.cpu()  # where reading it never waits for the device

    def _average(self, averages: _Tensors, values: _Tensors, _: Tensor | int) -> None:
        weight = 1 - ema_decay(int(self.n_averaged), self.decay)
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, weight)
        else:
            torch._foreach_copy_(averages, values)

    @torch.no_grad()
    def update_where(self, model: nn.Module, flag: Tensor) -> None:
        """`update_parameters` where ``flag``, one boolean on the device, is true; else nothing changes. It is not
        waited for, and `n_averaged` is on the device, too."""
        count = self.n_averaged
        decay = ((1 + count) / (10 + count)).clamp(max=self.decay) * (count > 0)  # as `ema_decay`, after a first copy
        pairs = zip(
            (*self.module.parameters(), *self.module.buffers()), (*model.parameters(), *model.buffers()), strict=True
        )
        averages, values = [], []
        for average, value in pairs:
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)  # as it was where the step was left out
        torch._foreach_add_(averages, torch._foreach_mul(torch._foreach_sub(values, averages), (1 - decay) * flag))
        count.add_(flag)
