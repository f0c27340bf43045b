"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for many matrices at once."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StackedMuon(torch.optim.Muon):
    """PyTorch's Muon with Nesterov's momentum, whose matrices of one shape are made orthogonal together.

    A matrix and one of the transposed shape, such as those of a block's two linear layers, count as one shape. A GPU
    that waits for each of a small model's products to be launched is told of a few large ones instead. The updates
    are scaled to the size of AdamW's, so that both share a learning rate (Liu et al. 2025, arXiv:2502.16982).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move the weights. ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            averages: list[Tensor] = []
            self._init_group(group, parameters, gradients, averages)
            if not parameters:
                continue
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, averages, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter, update in zip(parameters, updates, strict=True):
                wide = (parameter, update) if parameter.shape[0] <= parameter.shape[1] else (parameter.T, update.T)
                rows, columns = wide[0].shape
                shapes.setdefault((rows, columns), []).append(wide)
            for (_, columns), pairs in shapes.items():
                stack = torch.stack([update for _, update in pairs])
                orthogonal = orthogonalize(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])
                scale = -group["lr"] * 0.2 * math.sqrt(columns)
                for (parameter, _), change in zip(pairs, orthogonal, strict=True):
                    parameter.add_(change, alpha=scale)


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iterations, which bring the singular values near 1.

    Args:
        matrices: ``(n, rows, columns)``, not more rows than columns.
        coefficients: of the quintic polynomial.
        steps: iterations.
        eps: least norm that a matrix is divided by.

    Returns:
        The same shape, bfloat16.
    """
    a, b, c = coefficients
    x = matrices.bfloat16()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
