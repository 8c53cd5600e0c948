"""Optimizer and learning-rate schedule from a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ticketlab.recipe import TrainSection


def make_optimizer(parameters: Iterable[nn.Parameter], train: TrainSection) -> torch.optim.Optimizer:
    """A fresh optimizer; fused, because one kernel for all tensors is the fastest on CPU and GPU alike."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
            fused=True,
        )
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True)


def memory(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter, as `number/what`."""
    found = optimizer.state_dict()["state"].items()
    return {f"{index}/{n}": v for index, state in found for n, v in state.items() if isinstance(v, Tensor)}


def restore_memory_(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Let an optimizer remember what `memory` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def learning_rate(train: TrainSection, step: int, steps_per_epoch: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first): linear warm-up, then × gamma at each milestone."""
    passed = sum(step >= milestone.steps(steps_per_epoch) for milestone in train.milestones)
    warmup = train.warmup.steps(steps_per_epoch)
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return train.lr * ramp * train.gamma**passed
