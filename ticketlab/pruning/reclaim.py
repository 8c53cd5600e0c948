"""Spend the whole budget on live paths: no kept weight without a way in from the input and out to the output.

At extreme sparsity many weights of a mask lie on no path through the network (Vysogorets & Kempe 2023, "Connectivity
Matters", show how many). Here they are dropped and their places given to the next best that do. Source: our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ticketlab.pruning.allocate import Pool, prune
from ticketlab.pruning.masks import Mask, remaining

Reach = Callable[[Mask], Mask]
"""Mask → the positions that have a live way in and out through it, whether they are kept or not."""

Quotas = Sequence[tuple[Pool, int]]
"""Pools and the weights that each keeps."""


def prune_live(
    saliency: Mapping[str, Tensor], before: Mask, pools: Sequence[Pool], keeps: Sequence[int], reach: Reach
) -> Mask:
    """The next level's mask, of live weights only as far as there are enough of them; counts are exact.

    Where the usual mask has dead weights, they are dropped, and the most salient weights that lie on a path through the
    others take their places, half of what is missing at a time. Where that cannot fill the budget, because new units
    would be needed, the start is instead what is left of all live weights after the least salient ones have gone, with
    what their going leaves dead. A layer that would be empty keeps its best weight all the same.
    """
    usual = prune(saliency, before, pools, keeps)
    live = _live(usual, reach)
    if remaining(live) == remaining(usual):
        return usual
    place = {name: order for pool in pools for name, order in _order(saliency, before, pool).items()}
    quotas = list(zip(pools, keeps, strict=True))
    chosen = _filled(live, before, place, quotas, reach)
    if remaining(_live(chosen, reach)) < remaining(usual):
        other = _filled(_thinned(_live(before, reach), place, quotas, reach), before, place, quotas, reach)
        chosen = max(chosen, other, key=lambda mask: remaining(_live(mask, reach)))
    assert all(_count(chosen, pool) == keep for pool, keep in quotas), "a count is not exact"
    return chosen


def _filled(live: Mask, before: Mask, place: Mapping[str, Tensor], quotas: Quotas, reach: Reach) -> Mask:
    """A live mask with exact counts: of live weights as far as single ones can be added to it, else of any."""
    # a seed in an empty layer may end up beside the paths that grow from the others: drop it and fill up once more
    for _ in range(len(before)):
        chosen = _seeded(live, before, place)
        for pool, keep in quotas:
            _remove_lowest_(chosen, place, pool, _count(chosen, pool) - keep)
        chosen = _grown(chosen, before, place, quotas, reach)
        live = _live(chosen, reach)
        if remaining(live) == remaining(chosen) or not all(kept.any() for kept in live.values()):
            break
    for pool, keep in quotas:
        missing = keep - _count(chosen, pool)
        _add_best_(chosen, place, {name: before[name] & ~chosen[name] for name in pool.layers}, missing)
    return chosen


def _thinned(live: Mask, place: Mapping[str, Tensor], quotas: Quotas, reach: Reach) -> Mask:
    """A live part of a live mask within the quotas; empty where there is none."""
    share = 0.5
    while any(_count(live, pool) > keep for pool, keep in quotas):
        fewer, most = {name: kept.clone() for name, kept in live.items()}, 0
        for pool, keep in quotas:
            count = math.ceil(share * max(0, _count(live, pool) - keep))
            _remove_lowest_(fewer, place, pool, count)
            most = max(most, count)
        fewer = _live(fewer, reach)
        if remaining(fewer):
            live = fewer
        elif most > 1:
            share /= 2
        else:
            return fewer
    return live


def _remove_lowest_(mask: Mask, place: Mapping[str, Tensor], pool: Pool, count: int) -> None:
    """Remove the least salient weights of a pool, but of no layer its best one; none for a count below one."""
    best = {name: torch.where(mask[name], place[name], -1).max() for name in pool.layers}
    ranked = torch.cat([place[name][mask[name] & (place[name] < best[name])] for name in pool.layers])
    count = min(count, len(ranked))
    if count > 0:
        limit = ranked.kthvalue(count).values
        for name in pool.layers:
            mask[name] &= (place[name] > limit) | (place[name] >= best[name])


def _count(mask: Mask, pool: Pool) -> int:
    return sum(int(mask[name].sum()) for name in pool.layers)


def _live(mask: Mask, reach: Reach) -> Mask:
    return {name: mask[name] & reached for name, reached in reach(mask).items()}


def _seeded(live: Mask, before: Mask, place: Mapping[str, Tensor]) -> Mask:
    """A copy in which no layer is empty: where none of its weights is live, its most salient one is there."""
    chosen = {name: kept.clone() for name, kept in live.items()}
    for name, kept in chosen.items():
        if not kept.any():
            kept.view(-1)[torch.where(before[name], place[name], -1).argmax()] = True
    return chosen


def _grown(chosen: Mask, before: Mask, place: Mapping[str, Tensor], quotas: Quotas, reach: Reach) -> Mask:
    """Add the most salient weights on paths through what is chosen until every quota is filled or nothing more is."""
    grew = True
    while grew:
        grew = False
        reached = reach(chosen)
        for pool, keep in quotas:
            open_to = {name: before[name] & ~chosen[name] & reached[name] for name in pool.layers}
            missing = keep - _count(chosen, pool)
            grew |= _add_best_(chosen, place, open_to, math.ceil(missing / 2))
    return chosen


def _order(saliency: Mapping[str, Tensor], before: Mask, pool: Pool) -> dict[str, Tensor]:
    """Place of each weight of a pool in the order of saliency; ties fall to the earlier position, as in allocation."""
    flat = torch.cat([saliency[name].detach().double().reshape(-1) for name in pool.layers])
    alive = torch.cat([before[name].reshape(-1) for name in pool.layers])
    order = flat.masked_fill(~alive, -torch.inf).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    parts = place.split([saliency[name].numel() for name in pool.layers])
    return {name: part.view_as(saliency[name]) for name, part in zip(pool.layers, parts, strict=True)}


def _add_best_(chosen: Mask, place: Mapping[str, Tensor], open_to: Mask, count: int) -> bool:
    """Add the `count` best of the positions that are open, or all where there are fewer; whether any was added."""
    ranked = torch.cat([place[name][free] for name, free in open_to.items()])
    count = min(count, len(ranked))
    if count <= 0:
        return False
    least = ranked.topk(count).values.min()
    for name, free in open_to.items():
        chosen[name] |= free & (place[name] >= least)
    return True
