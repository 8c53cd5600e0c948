"""Saliency → mask: how many weights each layer keeps, exactly, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ticketlab.errors import PruningError
from ticketlab.pruning.masks import Mask


@dataclass(frozen=True)
class Pool:
    """Layers whose weights compete with each other, and the fraction removed per level."""

    layers: tuple[str, ...]
    rate: float


def make_pools(
    sizes: Mapping[str, int],
    scope: str,
    rate: float,
    output_rate: float | None = None,
    rates: Mapping[str, float] | None = None,
    ignore: Sequence[str] = (),
) -> list[Pool]:
    """Who competes with whom; a layer with a rate of its own, or rate 0, competes with nobody else.

    Args:
        sizes: Weights of each prunable layer, in the model's order; the last one is the output layer.
        scope: `layer` or `global`.
        rates: Rate by name pattern; a pattern fits a layer's name with or without its `.weight`.

    Raises PruningError for a pattern that fits no layer.
    """
    own = dict(rates or {})
    for pattern in (*own, *ignore):
        if not any(_fits(name, pattern) for name in sizes):
            raise PruningError(f"no layer is called '{pattern}'; layers: {', '.join(sizes)}")
    pools: list[Pool] = []
    shared: list[str] = []
    for name in sizes:
        special = _own_rate(name, output_rate if name == list(sizes)[-1] else None, own, ignore)
        if special is None and scope == "global":
            shared.append(name)
        else:
            pools.append(Pool((name,), rate if special is None else special))
    return ([Pool(tuple(shared), rate)] if shared else []) + pools


def _own_rate(name: str, output_rate: float | None, rates: Mapping[str, float], ignore: Sequence[str]) -> float | None:
    if any(_fits(name, pattern) for pattern in ignore):
        return 0.0
    matching = (own for pattern, own in rates.items() if _fits(name, pattern))
    return next(matching, output_rate)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def keep_count(pool: Pool, sizes: Mapping[str, int], level: int) -> int:
    """Weights that a pool keeps at a level: `level` times n → n − round(rate · n), halves rounded up.

    Never fewer than one weight per layer.
    """
    count = sum(sizes[name] for name in pool.layers)
    for _ in range(level):
        count -= math.floor(pool.rate * count + 0.5)
    return max(count, len(pool.layers))


def allocate(saliency: Mapping[str, Tensor], mask: Mask, pool: Pool, keep: int) -> Mask:
    """The mask of a pool's layers that keeps exactly `keep` of the weights in `mask`: those of highest saliency.

    Ties fall to the earlier position, which is removed first. The most salient weight of each layer stays, so
    that no layer is emptied; the count is exact all the same. Raises PruningError when saliency is not finite.
    """
    flat_saliency = torch.cat([_protected(saliency[name], mask[name], name).flatten() for name in pool.layers])
    flat_mask = torch.cat([mask[name].flatten() for name in pool.layers])
    remove = int(flat_mask.sum()) - keep
    if remove < 0 or keep < len(pool.layers):
        raise PruningError(f"cannot keep {keep} of {int(flat_mask.sum())} weights in {', '.join(pool.layers)}")
    positions = flat_mask.nonzero().squeeze(1)
    # stable sort: ties fall to the earlier position, so the removed count is exact and repeatable
    order = flat_saliency[positions].argsort(stable=True)
    kept = flat_mask.clone()
    kept[positions[order[:remove]]] = False
    pieces = torch.split(kept, [mask[name].numel() for name in pool.layers])
    return {name: piece.view_as(mask[name]) for name, piece in zip(pool.layers, pieces, strict=True)}


def _protected(saliency: Tensor, mask: Tensor, name: str) -> Tensor:
    """Saliency in double precision, with the layer's most salient remaining weight put out of reach."""
    exact = saliency.detach().to(torch.float64, copy=True)
    if not exact[mask].isfinite().all():
        raise PruningError(f"saliency of {name} is not finite: a fault of the criterion, or training diverged")
    # of several equal maxima the last, which is the one that the order of ties would keep
    backward = exact.masked_fill(~mask, -torch.inf).flatten().flip(0)
    exact.view(-1)[exact.numel() - 1 - backward.argmax()] = torch.inf
    return exact


def prune(saliency: Mapping[str, Tensor], mask: Mask, pools: Sequence[Pool], keeps: Sequence[int]) -> Mask:
    """The next level's mask, pool by pool, in the order of the given mask."""
    pruned: Mask = {}
    for pool, keep in zip(pools, keeps, strict=True):
        pruned.update(allocate(saliency, mask, pool, keep))
    return {name: pruned[name] for name in mask}
