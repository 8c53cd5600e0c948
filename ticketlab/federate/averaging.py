"""Updates of clients → one network: small functions of tensors, in double precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def weighted_mean(states: Sequence[State], examples: Sequence[int]) -> dict[str, Tensor]:
    """Mean of states, each weighted by its client's examples (McMahan et al. 2017, algorithm 1).

    Where all share a mask the mean has it too. Whole numbers, such as batch counters, are the largest client's.
    """
    weights = torch.tensor(examples, dtype=torch.float64)
    weights /= weights.sum()
    largest = int(weights.argmax())
    return {
        name: _mean([state[name] for state in states], weights) if value.is_floating_point() else states[largest][name]
        for name, value in states[0].items()
    }


def overlap_mean(
    before: State, states: Sequence[State], masks: Sequence[State], examples: Sequence[float]
) -> dict[str, Tensor]:
    """Mean of each weight over the clients that keep it; weights that nobody keeps stay as they were.

    Where no client masks a tensor it is a plain weighted mean. Source: LotteryFL (Li et al. 2020), which leaves the
    weights by examples out; equal `examples` give its rule.
    """
    found = weighted_mean(states, [max(int(count), 1) for count in examples])
    for name, old in before.items():
        if name not in masks[0]:
            continue
        values, total = torch.zeros_like(old, dtype=torch.float64), torch.zeros_like(old, dtype=torch.float64)
        for state, mask, count in zip(states, masks, examples, strict=True):
            values += count * (state[name].double() * mask[name])
            total += count * mask[name]
        mean = values / torch.where(total > 0, total, 1)
        found[name] = torch.where(total > 0, mean, old.double()).to(old.dtype)
    return found


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of tensors of one shape, each times its weight, in double precision."""
    return torch.tensordot(torch.tensor(list(weights), dtype=torch.float64), torch.stack(list(values)).double(), dims=1)


def _mean(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    stacked = torch.stack(list(values)).double()
    return torch.tensordot(weights, stacked, dims=1).to(values[0].dtype)
