"""What a checkpoint holds of the tensors in training, and how they get back to where they were."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from convnext.errors import CheckpointError
from convnext.runs import checkpoint
from convnext.training.optimizers import load_optimizers, optimizer_tensors
from convnext.weights.loading import load_state


def take(
    model: nn.Module, average: AveragedModel | None, optimizers: Sequence[Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights to use (the moving average where there is one), and what is needed besides to go on."""
    training = optimizer_tensors(model, optimizers)
    if average is None:
        return model.state_dict(), training
    training |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    training["average.updates"] = average.n_averaged
    return average.module.state_dict(), training


def restore(folder: Path, model: nn.Module, average: AveragedModel | None, optimizers: Sequence[Optimizer]) -> None:
    """Put the tensors of a checkpoint back.

    Raises:
        CheckpointError: a file is missing, damaged, or of another run.
    """
    training = checkpoint.read_tensors(folder / "training.safetensors")
    load_optimizers(model, optimizers, training)
    weights = checkpoint.read_tensors(folder / "model.safetensors")
    if average is not None:
        load_state(average.module, weights, folder / "model.safetensors")
        if "average.updates" not in training:
            raise CheckpointError(f"{folder / 'training.safetensors'} is not the one of this run: no average.updates")
        average.n_averaged.copy_(training["average.updates"])
        weights = {name.removeprefix("model."): x for name, x in training.items() if name.startswith("model.")}
    load_state(model, weights, folder)
