"""What a plan will cost before it runs: steps, multiply-accumulates, disk and rough time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ticketlab.cost import layer_macs
from ticketlab.pruning.masks import full_mask, remaining
from ticketlab.workflows.draw import ticket_network
from ticketlab.workflows.pace import Pace, measure
from ticketlab.workflows.plan import Plan


@dataclass(frozen=True)
class LevelForecast:
    """One level before it runs."""

    level: int
    density: float
    remaining: int
    steps: int
    macs: float
    """Multiply-accumulates with remaining weights, one example forward."""


@dataclass(frozen=True)
class Forecast:
    """A run before it starts."""

    levels: list[LevelForecast]
    replicates: int
    bytes: int
    seconds: float
    """Of one core, all replicates together; rough."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def forecast(plan: Plan, pace: Pace | None = None) -> Forecast:
    """Levels, sizes and rough time of a plan; keeps nothing of the few steps that it times where no pace is given."""
    pace = pace or measure(plan, torch.device("cpu"))
    macs_of = layer_macs(plan.build(0), plan.data.dataset.input_shape)
    dense = sum(macs_of.values())
    total = sum(plan.sizes.values())
    levels = []
    seconds = pace.start
    for index in range(plan.levels + 1):
        kept, macs = _channels_left(plan, index) if plan.has_channels else _weights_left(plan, index, macs_of)
        steps = plan.stop(index) - plan.start(index)
        levels.append(LevelForecast(index, kept / total, kept, steps, macs))
        # tickets of channels are smaller networks; masked ones are as fast as their pace says
        seconds += pace.level_seconds(plan, index, steps) * (macs / dense if plan.has_channels else 1)
    replicates = plan.recipe.replicates
    state_bytes = sum(value.nbytes for value in plan.build(0).state_dict().values())
    return Forecast(
        levels=levels,
        replicates=replicates,
        bytes=replicates * (len(levels) * 2 + 4) * state_bytes,
        seconds=replicates * seconds,
    )


def _weights_left(plan: Plan, level: int, macs: Mapping[str, int]) -> tuple[int, float]:
    """Remaining weights, and multiply-accumulates with them alone."""
    keeps = plan.keeps(level)
    density = {
        name: keep / sum(plan.sizes[n] for n in pool.layers)
        for pool, keep in zip(plan.pools, keeps, strict=True)
        for name in pool.layers
    }
    return sum(keeps), sum(macs[name.removesuffix(".weight")] * share for name, share in density.items())


def _channels_left(plan: Plan, level: int) -> tuple[int, float]:
    """Weights and multiply-accumulates of a ticket that keeps the same share of every group's channels."""
    assert plan.early_bird is not None
    share = plan.early_bird.targets[level - 1].density if level else 1.0
    mask = {name: torch.arange(units) < max(1, round(share * units)) for name, units in plan.judged.items()}
    model = ticket_network(plan, mask)
    return remaining(full_mask(model)), sum(layer_macs(model, plan.data.dataset.input_shape).values())
