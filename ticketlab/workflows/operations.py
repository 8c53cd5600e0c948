"""Floating-point operations of training a ticket, and of iterative pruning's way to its density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ticketlab.cost import training_flops
from ticketlab.pruning.masks import Mask
from ticketlab.training.sparse import sparse_layers
from ticketlab.workflows.draw import ticket_network
from ticketlab.workflows.plan import Plan


def rungs(density: float, rate: float) -> list[float]:
    """Densities between 1 and `density` through which iterative pruning goes at a rate."""
    levels = math.ceil(round(math.log(density) / math.log1p(-rate), 9))
    return [(1 - rate) ** level for level in range(1, levels)]


def operations(plan: Plan, device: torch.device, mask: Mask, ladder: Sequence[Mask]) -> dict[str, Any]:
    """Operations for one example: dense, with this mask, and for each level of iterative pruning from the dense one on.

    `executed` counts what runs on this device, `remaining` no multiplications by removed weights.

    Args:
        ladder: Masks of the levels between the dense network and this mask.
    """
    shape = plan.data.dataset.input_shape
    dense = training_flops(plan.build(0), shape)
    whole = sum(dense.values())
    counted = [_count(plan, device, dense, found) for found in (*ladder, mask)]
    return {
        "dense": whole,
        "executed": counted[-1][0],
        "remaining": counted[-1][1],
        "imp_executed": [whole, *(executed for executed, _ in counted)],
        "imp_remaining": [whole, *(remaining for _, remaining in counted)],
    }


def _count(plan: Plan, device: torch.device, dense: dict[str, int], mask: Mask) -> tuple[float, float]:
    """Executed operations, and those with remaining weights only; masked layers are multiplied whole."""
    assert plan.early_bird is not None
    if plan.early_bird.groups:
        small = sum(training_flops(ticket_network(plan, mask), plan.data.dataset.input_shape).values())
        return small, small
    sparse = sparse_layers(plan.build(0), mask, device)
    executed, remaining = 0.0, 0.0
    for name, count in dense.items():
        kept = mask.get(f"{name}.weight")
        share = 1.0 if kept is None else float(kept.sum()) / kept.numel()
        remaining += count * share
        executed += count * (share if f"{name}.weight" in sparse else 1.0)
    return executed, remaining
