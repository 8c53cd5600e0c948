"""Floating-point operations of training a ticket, and of iterative pruning's way to its density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ticketlab.cost import masked_flops, shares, training_flops
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
    shape, model = plan.data.dataset.input_shape, plan.build(0)
    dense = training_flops(model, shape)

    def count(found: Mask) -> tuple[float, float]:
        if plan.has_channels:
            small = float(sum(training_flops(ticket_network(plan, found), shape).values()))
            return small, small
        return masked_flops(dense, shares(found), shares(sparse_layers(model, found, device)))

    whole, counted = sum(dense.values()), [count(found) for found in (*ladder, mask)]
    return {
        "dense": whole,
        "executed": counted[-1][0],
        "remaining": counted[-1][1],
        "imp_executed": [whole, *(executed for executed, _ in counted)],
        "imp_remaining": [whole, *(remaining for _, remaining in counted)],
    }
