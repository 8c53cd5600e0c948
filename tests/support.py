"""What several tests share: a tiny recipe, and how two runs are compared."""

from dataclasses import replace
from pathlib import Path

import torch

TINY = """
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 30it, batch_size: 32, evaluate_every: 10it}
pruning: {levels: 2, rate: 0.2, output_rate: 0.1}
"""
"""Half a second a level: real digits, the real network, few steps."""

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("**/*.yaml"))


TIMES = {"seconds": 0.0, "step_ms": 0.0}


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
