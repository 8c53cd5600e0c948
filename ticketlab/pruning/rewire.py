"""Dynamic sparse training: which weights of a layer go, which come in their place, and how many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ticketlab.pruning.allocate import lowest, share_out


def moved_share(fraction: float, done: float, is_cosine: bool) -> float:
    """Share of a layer's weights that are moved when this share of the time for it is over.

    fraction / 2 · (1 + cos(π · done)), or the same throughout (Evci et al. 2020, section 3).
    """
    return fraction / 2 * (1 + math.cos(math.pi * done)) if is_cosine else fraction


def weakest(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Where the `count` remaining weights of smallest magnitude stand; of equal ones the earlier."""
    return lowest(weight.detach().abs().masked_fill(~mask, torch.inf).flatten(), count).view_as(mask)


def strongest(score: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Where the `count` highest scores among those allowed stand; of equal ones the earlier."""
    return lowest(-score.masked_fill(~allowed, -torch.inf).flatten(), count).view_as(allowed)


def anywhere(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the places allowed, all with the same chance."""
    free = allowed.flatten().cpu()
    chosen = torch.zeros_like(free)
    if 2 * (int(free.sum()) - count) < len(free):
        places = free.nonzero().squeeze(1)
        chosen[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    else:  # half of all places stay free: one after the other, again where a place is taken or not allowed
        while missing := count - int(chosen.sum()):
            drawn = torch.randint(len(free), (missing,), generator=generator)
            chosen[drawn[free[drawn]]] = True
    return chosen.view_as(allowed).to(allowed.device)


def opposed(weight: Tensor, sign: Tensor, mask: Tensor) -> Tensor:
    """Where remaining weights have left the sign that they were given (Bellec et al. 2018, algorithm 1)."""
    return mask & (weight.detach() * sign < 0)


def growth(momentum: Mapping[str, Tensor], masks: Mapping[str, Tensor], dropped: Mapping[str, int]) -> dict[str, int]:
    """How many weights come to each layer: in proportion to the mean |momentum| of those that remain.

    As many in all as were dropped; what a layer has no room for goes to the others (Dettmers & Zettlemoyer 2019,
    section 3).

    Args:
        masks: After the drop.
    """
    room = {name: int((~mask).sum()) for name, mask in masks.items()}
    means = {name: float(momentum[name].abs()[mask].mean()) if mask.any() else 0.0 for name, mask in masks.items()}
    if not 0 < sum(means.values()) < math.inf:  # nothing is known yet, or training diverges
        return dict(dropped)
    return share_out(means, room, sum(dropped.values()))
