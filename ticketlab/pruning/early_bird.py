"""When the mask of a network in training has stopped moving, so that its ticket can be drawn.

Source: You et al. 2020, "Drawing early-bird tickets", section 3 and algorithm 1: the newest mask lies within ε of
all others in a window. Differs from it in the unit of distance: a raw Hamming distance is small at high sparsity
whatever the masks are, so distances are given in units of chance unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ticketlab.pruning.allocate import Pool
from ticketlab.pruning.masks import Mask, pack

Measure = Literal["chance", "hamming"]
"""Unit of a mask distance: fraction of positions that differ, as it is or against what chance would give."""

Counts = tuple[int, float, int]
"""Of a layer: positions that differ, those that would by chance, all."""


@dataclass(frozen=True)
class Snapshot:
    """A mask at one time, eight positions in a byte."""

    bits: dict[str, NDArray[np.uint8]]
    shapes: dict[str, tuple[int, ...]]

    @cached_property
    def kept(self) -> dict[str, int]:
        """Positions that each layer keeps."""
        return {name: int(np.bitwise_count(packed).sum()) for name, packed in self.bits.items()}

    @property
    def nbytes(self) -> int:
        """Memory that the bits take."""
        return sum(packed.nbytes for packed in self.bits.values())


def snapshot(mask: Mask) -> Snapshot:
    """Pack a mask."""
    return Snapshot(
        bits={name: pack(kept) for name, kept in mask.items()},
        shapes={name: tuple(kept.shape) for name, kept in mask.items()},
    )


def mask_distance(first: Snapshot, second: Snapshot, measure: Measure) -> float:
    """Normalised Hamming distance of two masks of the same layers, in the given unit.

    1 in units of chance: the masks have their layers' densities in common and nothing else. 0 where chance has no
    say, because every layer is full or empty.
    """
    return _distance(list(_counts(first, second).values()), measure)


def layer_distances(first: Snapshot, second: Snapshot, measure: Measure) -> dict[str, float]:
    """Distance of each layer on its own."""
    return {name: _distance([counts], measure) for name, counts in _counts(first, second).items()}


def _counts(first: Snapshot, second: Snapshot) -> dict[str, Counts]:
    """What each layer adds to a distance.

    Two independent masks that keep fractions d and e differ at d(1 − e) + e(1 − d) of the positions: 2p(1 − p) at
    equal pruning ratio p.
    """
    found: dict[str, Counts] = {}
    for name, shape in first.shapes.items():
        total = int(np.prod(shape))
        one, other = first.kept[name] / total, second.kept[name] / total
        differing = int(np.bitwise_count(first.bits[name] ^ second.bits[name]).sum())
        found[name] = (differing, (one * (1 - other) + other * (1 - one)) * total, total)
    return found


def _distance(counts: Sequence[Counts], measure: Measure) -> float:
    differing, by_chance, total = (sum(column) for column in zip(*counts, strict=True))
    against = by_chance if measure == "chance" else total
    return differing / against if against else 0.0


def window_distance(distances: Sequence[float], window: int) -> float | None:
    """Largest distance from the newest mask to the others of its window; None before the window is full.

    Args:
        distances: From the newest mask to each earlier one, the latest last.
        window: Masks in the window, the newest among them.
    """
    recent = distances[-(window - 1) :]
    return max(recent) if len(recent) == window - 1 else None


def has_settled(distances: Sequence[float], window: int, epsilon: float) -> bool:
    """Whether the newest mask is closer than ε to all others of a full window; arguments as of `window_distance`."""
    distance = window_distance(distances, window)
    return distance is not None and distance < epsilon


def decides_nothing(saliency: Mapping[str, Tensor], pools: Sequence[Pool]) -> bool:
    """Whether all of each pool's saliencies are equal, as a fresh batch norm's scales: any mask would be arbitrary."""
    return all(
        min(float(saliency[name].min()) for name in pool.layers)
        == max(float(saliency[name].max()) for name in pool.layers)
        for pool in pools
        if pool.rate > 0 and sum(saliency[name].numel() for name in pool.layers) > 1
    )


def nearly_empty(mask: Mask, share: float) -> list[str]:
    """Layers that keep less than `share` of what the whole mask keeps on average, or a single one of several."""
    overall = sum(int(kept.sum()) for kept in mask.values()) / sum(kept.numel() for kept in mask.values())
    found = []
    for name, kept in mask.items():
        count = int(kept.sum())
        if count < kept.numel() and (count <= 1 or count < share * overall * kept.numel()):
            found.append(name)
    return found
