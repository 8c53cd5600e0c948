"""Which weights a run kept: layer by layer, input by input, and whether replicates and levels agree."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from ticketlab import run_figures
from ticketlab.page.blocks import Block, Picture, Text
from ticketlab.page.facts import Facts
from ticketlab.page.words import percent
from ticketlab.pruning.overlap import between_replicates, by_chance, first_layer, nesting
from ticketlab.report import sparsest


def layers(facts: Facts) -> Iterator[Block]:
    """Density of each layer, and its sign flips where they were counted."""
    names = list(facts.levels[0].layers)
    if len(facts.rows) > 1:
        end = sparsest(facts.rows)
        last = [level for level in facts.levels if level.level == end.level]
        ends = {name: fmean(level.layers[name] for level in last) for name in names}
        yield Picture(
            "layers",
            "Which layers the pruning spares: density of each against that of the whole network",
            f"At {percent(end.density)}: "
            + ", ".join(f"{name.removesuffix('.weight')} {percent(share)}" for name, share in ends.items()),
            run_figures.densities_by_layer(facts.levels),
            [
                {"level": level.level, "replicate": level.replicate, "density": level.density, **level.layers}
                for level in facts.levels
            ],
        )
    if any(level.sign_flips for level in facts.levels):
        yield Picture(
            "flips",
            "How often each remaining weight changed its sign while its level trained",
            "Sign flips for each remaining weight, by level and layer.",
            run_figures.flips_by_layer(facts.levels),
        )


def masks(facts: Facts) -> Iterator[Block]:
    """The first layer's mask as a picture, and overlaps between replicates and levels."""
    tickets = {level: mask for level, mask in facts.masks.get(1, {}).items() if level}
    if not any(tickets.values()):
        return
    pictures = {level: seen for level, mask in tickets.items() if (seen := first_layer(mask))}
    if pictures:
        name, last = pictures[max(pictures)]
        drawn = {level: seen for level, (_, seen) in pictures.items()}
        layer = tickets[max(pictures)][name]
        if layer.dim() == 4:
            yield Picture(
                "kernels",
                f"The first layer's mask ({name}): filters in reading order, the input channels of each side by side",
                f"Mask of {name}.",
                run_figures.kernels(drawn, facts.densities),
            )
        else:
            yield Picture(
                "pixels",
                f"Which inputs the ticket looks at: how many of each pixel's weights into {name} remain, in units of "
                "the mean over pixels",
                "Pixels in the middle of the picture keep more weights than those at its edge."
                if _is_central(last)
                else "Weights that remain at each input pixel.",
                run_figures.input_pixels(drawn, facts.densities, layer.numel() // last.size),
            )
    yield from _overlaps(facts)


def _is_central(shares: NDArray[np.float64]) -> bool:
    quarter = len(shares) // 4
    middle = shares[quarter:-quarter, quarter:-quarter]
    return bool(middle.mean() > 1.2 * shares.mean())


def _overlaps(facts: Facts) -> Iterator[Block]:
    tickets = [row.level for row in facts.rows[1:]]
    names = {name for found in facts.masks.values() for mask in found.values() for name in mask}
    what = "weights" if names <= set(facts.levels[0].layers) else "channels"
    shared = {
        level: share
        for level in tickets
        if (share := between_replicates([found[level] for found in facts.masks.values() if level in found])) is not None
    }
    if shared:
        last = min(shared, key=lambda level: facts.densities[level])
        chance = {level: by_chance([m[level] for m in facts.masks.values() if level in m]) for level in shared}
        yield Picture(
            "overlap",
            f"Do replicates, each with its own seed, keep the same {what}? The dashed line is what chance gives",
            f"At {percent(facts.densities[last])} of weights two replicates share {percent(shared[last])} of their "
            f"{what}; by chance {percent(chance[last])}.",
            run_figures.overlaps(shared, chance, facts.densities, len(facts.masks), what),
            [
                {"level": level, "density": facts.densities[level], "shared": shared[level], "by_chance": chance[level]}
                for level in shared
            ],
        )
    first = {level: facts.masks[1][level] for level in tickets if level in facts.masks.get(1, {})}
    kept = nesting(list(first.values()))
    is_nested = all(kept[row, column] == 1 for row in range(len(first)) for column in range(row))
    if len(first) > 1 and is_nested:
        yield Text(f"Masks are nested: of the {what}, a level keeps none that one before it removed.")
    elif len(first) > 1:
        yield Picture(
            "nesting",
            f"Do later levels keep what earlier ones kept? Of each level's {what}, the share that another keeps, too",
            f"Shares from {percent(kept.min())} to 100 %.",
            run_figures.nesting(kept, list(first), what),
        )
