"""Where each weight stands among those that it competes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ticketlab.pruning.allocate import Pool
from ticketlab.pruning.masks import Mask


def ranks(values: Mapping[str, Tensor], mask: Mask, pools: Sequence[Pool]) -> dict[str, Tensor]:
    """Share of a pool's remaining weights that lie below each one, equal ones counted half; float64 in (0, 1).

    Removed weights get 0. The mean over a pool is ½ whatever the values are.
    """
    found: dict[str, Tensor] = {}
    for pool in pools:
        parts = [values[name][mask[name]] for name in pool.layers]
        placed = _mid_ranks(torch.cat(parts)).split([len(part) for part in parts])
        for name, ranked in zip(pool.layers, placed, strict=True):
            found[name] = torch.zeros(values[name].shape, dtype=torch.float64, device=ranked.device)
            found[name][mask[name]] = ranked
    return found


def _mid_ranks(values: Tensor) -> Tensor:
    """(share below + share at or below) / 2 for each value."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * len(values))
