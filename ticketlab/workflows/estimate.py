"""What a plan will cost before it runs: steps, multiply-accumulates, disk and rough time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ticketlab.cost import layer_macs
from ticketlab.workflows.plan import Plan

TRAINING_FACTOR = 3
"""Forward, gradient of inputs and gradient of weights cost about the same."""
OVERHEAD = 1.8
"""Whole step against its matrix products (benchmarks/prune_speed.py, LeNet-300-100)."""


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


def forecast(plan: Plan) -> Forecast:
    """Levels, sizes and rough time of a plan; trains nothing, but measures one matrix product."""
    counted = layer_macs(plan.build(0), plan.data.dataset.input_shape)
    macs = {name: counted[name.removesuffix(".weight")] for name in plan.sizes}
    dense = sum(macs.values())
    total = sum(plan.sizes.values())
    levels = []
    for index in range(plan.recipe.pruning.levels + 1):
        keeps = plan.keeps(index)
        density = {
            name: keep / sum(plan.sizes[n] for n in pool.layers)
            for pool, keep in zip(plan.pools, keeps, strict=True)
            for name in pool.layers
        }
        alive = sum(macs.get(name, 0) * density[name] for name in density)
        steps = plan.steps - plan.start(index)
        levels.append(LevelForecast(index, sum(keeps) / total, sum(keeps), steps, alive))
    steps = sum(level.steps for level in levels)
    examples = steps * plan.recipe.train.batch_size * TRAINING_FACTOR + (
        steps // plan.evaluate_every * len(plan.splits.validation)
    )
    replicates = plan.recipe.replicates
    state_bytes = sum(value.nbytes for value in plan.build(0).state_dict().values())
    return Forecast(
        levels=levels,
        replicates=replicates,
        bytes=replicates * (len(levels) * 2 + 4) * state_bytes,
        seconds=replicates * OVERHEAD * examples * dense / _macs_per_second(),
    )


def _macs_per_second() -> float:
    first, second = torch.rand(256, 768), torch.rand(768, 256)
    first @ second
    began = time.perf_counter()
    for _ in range(20):
        first @ second
    return 20 * 256 * 768 * 256 / (time.perf_counter() - began)
