"""The line between two networks: points on it, how far the error rises, and the smallest step at which it does not.

Source: Frankle, Dziugaite, Roy & Carbin 2020, "Linear mode connectivity and the lottery ticket hypothesis", section 2.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]

STABLE_BELOW = 0.02
"""Rise of the error below which a network counts as stable, a fraction of 1 (section 2)."""


def positions(points: int) -> list[float]:
    """Evenly spaced α from 0 to 1, both ends among them."""
    return [index / (points - 1) for index in range(points)]


def interpolate(one: State, other: State, alpha: float) -> dict[str, Tensor]:
    """(1 − α) · one + α · other; exact at both ends, and zero wherever both are zero.

    Whole numbers, such as batch norm's count of batches, are those of `one`.
    """
    return {
        name: (1 - alpha) * value + alpha * other[name] if value.is_floating_point() else value.clone()
        for name, value in one.items()
    }


def barrier(errors: Sequence[float]) -> float:
    """Linear interpolation instability: the largest error on the line minus the mean of both ends (section 2)."""
    return max(errors) - statistics.fmean((errors[0], errors[-1]))


def distance(one: State, other: State, names: Sequence[str]) -> float:
    """Euclidean distance (L2) of the named tensors taken together."""
    squares = (torch.sum((one[name].double() - other[name].double()) ** 2).item() for name in names)
    return math.sqrt(sum(squares))


@dataclass(frozen=True)
class Bracket:
    """Where the smallest stable step lies, as far as is known."""

    stable: int | None
    """The smallest step found stable."""
    unstable: int | None
    """The largest step below it found unstable; of all, where none is stable."""


def bracket(found: Mapping[int, bool]) -> Bracket:
    """What probes say, step → whether it is stable."""
    stable = min((step for step, is_stable in found.items() if is_stable), default=None)
    unstable = [step for step, is_stable in found.items() if not is_stable and (stable is None or step < stable)]
    return Bracket(stable, max(unstable, default=None))


def next_probe(found: Mapping[int, bool], stop: int, resolution: int) -> int | None:
    """The step to try next in search of the smallest stable one; None once it is known to within the resolution.

    0 first, then the resolution and its doublings, then halves of what lies between an unstable and a stable step:
    all are multiples of the resolution below `stop`. Right where stability, once reached, is not lost again.
    """
    highest = (stop - 1) // resolution * resolution
    known = bracket(found)
    if known.unstable is None:
        return 0 if known.stable is None else None
    if known.stable is None:
        return None if known.unstable == highest else min(max(2 * known.unstable, resolution), highest)
    gap = (known.stable - known.unstable) // resolution
    return known.unstable + gap // 2 * resolution if gap > 1 else None
