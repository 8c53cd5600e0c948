"""Stochastic gradient descent without torch's optimizers, whose first use loads torch's compiler: seconds of a process.

A federation's client lives for one round; there the compiler would cost more than the training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class PlainSgd:
    """v ← momentum · v + gradient, weight ← weight − lr · v; what torch.optim.SGD computes."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.0) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.momentum = momentum
        self._velocity: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step with the gradients that are there."""
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    parameter.add_(self._direction(index, parameter.grad), alpha=-group["lr"])

    def _direction(self, index: int, gradient: Tensor) -> Tensor:
        if not self.momentum:
            return gradient
        if index in self._velocity:
            self._velocity[index].mul_(self.momentum).add_(gradient)
        else:
            self._velocity[index] = gradient.clone()
        return self._velocity[index]
