"""What several tests share: a tiny recipe, and how two runs are compared."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ticketlab.errors import Interrupted
from ticketlab.runs.store import Level
from ticketlab.workflows.prune import prune_replicate
from ticketlab.workflows.train_level import Settings

TINY = """
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 30it, batch_size: 32, evaluate_every: 10it}
pruning: {levels: 2, rate: 0.2, output_rate: 0.1}
"""
"""Half a second a level: real digits, the real network, few steps."""

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("**/*.yaml"))


TIMES = {"seconds": 0.0, "step_ms": 0.0, "looking_seconds": 0.0}


def untimed(level):
    """A record without what the clock says."""
    curve = tuple({k: v for k, v in point.items() if k != "step_ms"} for point in level.curve)
    return replace(level, curve=curve, **TIMES)


def states(store, levels):
    return [store.read_weights(1, index, which) for index in range(levels) for which in ("early_stop", "final")] + [
        store.read_ticket(1, index).mask for index in range(levels)
    ]


def equal(one, other):
    return all(
        set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, other, strict=True)
    )


def level(replicate, index, accuracy, density=None, **changes):
    """A level's record, as a run would have it; half of the weights go at each level, the seed is the replicate + 6."""
    made = Level(
        replicate=replicate, seed=replicate + 6, level=index, density=0.5**index if density is None else density,
        remaining=50, total=100, val_accuracy=0.9, val_loss=0.3, test_accuracy=accuracy, test_loss=0.4,
        early_stop_step=5, final_val_accuracy=0.9, final_test_accuracy=0.9, final_test_loss=0.4, steps=10, seconds=2.0,
        step_ms=1.0, layers={"fc1.weight": 0.5}, curve=({"step": 10.0},), effective_density=0.25, flops=100.0,
        remaining_flops=50.0,
    )  # fmt: skip
    return replace(made, **changes)


def stopped_at(plan, store, steps):
    """Train a replicate that is stopped after each of these steps, counted over all levels, and goes on to its end."""
    done = 0

    def stops():
        nonlocal done
        done += 1
        return done in steps

    for _ in steps:
        with pytest.raises(Interrupted):
            list(prune_replicate(plan, store, 1, Settings(should_stop=stops)))
    list(prune_replicate(plan, store, 1, Settings()))
