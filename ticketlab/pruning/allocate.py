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


def keep_cubic(pool: Pool, sizes: Mapping[str, int], end: int, level: int, levels: int) -> int:
    """Weights that a pool keeps at a level of the cubic schedule whose last level keeps `end` of them.

    n − (n − end) · (1 − (1 − level/levels)³), halves rounded up (Zhu & Gupta 2017, equation 1).
    """
    count = keep_count(pool, sizes, 0)
    return math.floor(end + (count - end) * (1 - level / levels) ** 3 + 0.5)


def keep_by_shape(shapes: Mapping[str, Sequence[int]], keep: int, with_kernel: bool) -> dict[str, int]:
    """Weights that each layer keeps, `keep` in all, where the density of a layer is as its Erdős–Rényi graph's.

    In proportion to (inputs + units) / (inputs · units), or with the sides of a kernel in sum and product alike
    (Mocanu et al. 2018, equation 3; Evci et al. 2020, section 3). Layers that would keep more than all stay dense, and
    the others share what is left. Fractions are cut off; what that leaves goes to the largest ones, the earlier of
    equal ones. Never fewer than one weight per layer.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not len(sizes) <= keep <= sum(sizes.values()):
        raise PruningError(f"cannot keep {keep} of {sum(sizes.values())} weights in {', '.join(sizes)}")
    sides = {name: shape if with_kernel else shape[:2] for name, shape in shapes.items()}
    parts = {name: sizes[name] * sum(side) / math.prod(side) for name, side in sides.items()}
    counts = {name: max(1, count) for name, count in share_out(parts, sizes, keep).items()}
    while sum(counts.values()) > keep:  # a layer had to be given its one weight
        counts[max(counts, key=lambda name: counts[name])] -= 1
    return counts


def share_out(parts: Mapping[str, float], room: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers of this sum in proportion to `parts`; what one has no room for goes to the others.

    Fractions are cut off; what that leaves goes to the largest ones, the earlier of equal ones.
    """
    full: set[str] = set()
    while True:
        rest = total - sum(room[name] for name in full)
        whole = sum(part for name, part in parts.items() if name not in full) or 1.0
        wanted = {name: float(room[name]) if name in full else rest * part / whole for name, part in parts.items()}
        over = {name for name in parts if name not in full and wanted[name] > room[name]}
        if not over:
            break
        full |= over
    counts = {name: math.floor(count) for name, count in wanted.items()}
    while missing := total - sum(counts.values()):
        free = sorted(
            (name for name in parts if counts[name] < room[name]), key=lambda name: counts[name] - wanted[name]
        )
        for name in free[:missing]:
            counts[name] += 1
    return counts


def keep_at(pool: Pool, sizes: Mapping[str, int], density: float, rate: float) -> int:
    """Weights that a pool keeps in a network of this density; never fewer than one weight per layer.

    A pool of the common `rate` keeps `density` of its weights, halves rounded up; one with a rate of its own is
    pruned as many (not whole) times as the common rate needs to get there.
    """
    count = sum(sizes[name] for name in pool.layers)
    times = math.log(density) / math.log1p(-rate)
    share = density if pool.rate == rate else (1 - pool.rate) ** times
    return max(math.floor(share * count + 0.5), len(pool.layers))


def allocate(saliency: Mapping[str, Tensor], mask: Mask, pool: Pool, keep: int) -> Mask:
    """The mask of a pool's layers that keeps exactly `keep` of the weights in `mask`: those of highest saliency.

    Ties fall to the earlier position, which is removed first. The most salient weight of each layer stays, so
    that no layer is emptied; the count is exact all the same. Raises PruningError when saliency is not finite.
    """
    values = [_competing(saliency[name], mask[name], name) for name in pool.layers]
    alive = sum(map(len, values))
    remove = alive - keep
    if remove < 0 or keep < len(pool.layers):
        raise PruningError(f"cannot keep {keep} of {alive} weights in {', '.join(pool.layers)}")
    gone = lowest(torch.cat(values), remove).split([len(part) for part in values])
    return {name: _without(mask[name], removed) for name, removed in zip(pool.layers, gone, strict=True)}


def _competing(saliency: Tensor, mask: Tensor, name: str) -> Tensor:
    """Saliencies of a layer's remaining weights, in order, with the highest put out of reach."""
    # indexing by a mask is slow, and needless where nothing is removed yet
    values = saliency.detach().flatten().clone() if mask.all() else saliency.detach()[mask]
    values = values if values.is_floating_point() else values.double()
    if not values.isfinite().all():
        raise PruningError(f"saliency of {name} is not finite: a fault of the criterion, or training diverged")
    # of several equal maxima the last, which is the one that the order of ties would keep
    values[(values == values.max()).nonzero()[-1]] = torch.inf
    return values


def _without(mask: Tensor, removed: Tensor) -> Tensor:
    """A mask without some of its weights; `removed` is one bool for each that remains, in order."""
    if mask.all():
        return ~removed.view_as(mask)
    kept = mask.clone()
    kept[mask] = ~removed
    return kept


def lowest(values: Tensor, count: int) -> Tensor:
    """Where the `count` lowest values stand; of equal ones the earlier. A selection, ten times faster than a sort."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    above = len(values) - count
    are_few = 10 * above < count  # selecting those that stay takes a quarter to three quarters of the time
    threshold = values.topk(above + 1, sorted=False).values.min() if are_few else values.kthvalue(count).values
    lowest = values <= threshold
    ties = int(lowest.sum()) - count
    if ties:
        lowest[(values == threshold).nonzero()[-ties:]] = False  # of equal ones the later stay
    return lowest


def prune(saliency: Mapping[str, Tensor], mask: Mask, pools: Sequence[Pool], keeps: Sequence[int]) -> Mask:
    """The next level's mask, pool by pool, in the order of the given mask."""
    pruned: Mask = {}
    for pool, keep in zip(pools, keeps, strict=True):
        pruned.update(allocate(saliency, mask, pool, keep))
    return {name: pruned[name] for name in mask}
