"""The plan of a run: everything that it needs, checked, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from ticketlab.data.batches import Splits
from ticketlab.fusion.paths import Paths
from ticketlab.pruning.allocate import Pool, keep_at, keep_by_shape, keep_count, keep_cubic
from ticketlab.pruning.masks import Mask
from ticketlab.recipe import Recipe, Where
from ticketlab.recipe_file import RecipeFile
from ticketlab.report import SAME_DENSITY
from ticketlab.workflows.inputs import Data, run_hash, run_name
from ticketlab.workflows.rewiring import Rewiring
from ticketlab.workflows.schedule import Schedule
from ticketlab.workflows.targets import EarlyBird
from ticketlab.workflows.ticket_source import TicketSource


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked."""

    file: RecipeFile
    data: Data
    splits: Splits
    build: Callable[[int], nn.Module]
    """Seed → the network with its initial weights, on the CPU."""
    sizes: dict[str, int]
    """Weights of each prunable layer."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each prunable weight, (units, inputs, …)."""
    judged: dict[str, int]
    """What competes for its place: the same, or the channels of each group."""
    pools: list[Pool]
    steps_per_epoch: int
    steps: int
    """Optimizer step at which every level ends."""
    rewind: int
    """Step whose weights a ticket restarts from."""
    evaluate_every: int
    early_bird: EarlyBird | None = None
    """What is searched for while level 0 trains."""
    schedule: Schedule | None = None
    """When the one training of all levels is pruned; None where each level is a training of its own."""
    rewiring: Rewiring | None = None
    """When weights are replaced while levels train."""
    half_life: int | None = None
    """Steps after which a sign flip counts half."""
    source: TicketSource | None = None
    """Of a transfer: the run that its ticket comes from."""
    given: Mask | None = None
    """Of a transfer, the first replicate's mask; None until its source is looked up."""

    @property
    def recipe(self) -> Recipe:
        """The recipe as run: with the stand-in's name where one is used."""
        return self.file.recipe

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return run_name(self.file)

    @property
    def hash(self) -> str:
        """Hash of what decides the results."""
        return run_hash(self.file)

    @property
    def levels(self) -> int:
        """Levels after level 0."""
        if self.recipe.method == "transfer":
            return 1
        return len(self.early_bird.targets) if self.early_bird else self.recipe.levels

    @cached_property
    def competing(self) -> list[str]:
        """Weights that may be removed; those of `pruning.ignore` may not."""
        return [name for name in self.sizes if any(name in pool.layers and pool.rate for pool in self.pools)]

    @property
    def has_channels(self) -> bool:
        """Whether tickets are smaller dense networks instead of masks."""
        return self.early_bird is not None and bool(self.early_bird.groups)

    @cached_property
    def paths(self) -> Paths:
        """Paths through the network; raises FusionError where it cannot be traced."""
        return Paths(self.build(0), self.data.dataset.input_shape)

    def keeps(self, level: int) -> list[int]:
        """Weights (or channels) that each pool keeps at a level."""
        if level and self.recipe.method == "transfer":
            assert self.given is not None, "the source is looked up before its ticket is counted"
            return [sum(int(self.given[name].sum()) for name in pool.layers) for pool in self.pools]
        if level and self.early_bird:
            return self.keeps_at(self.early_bird.targets[level - 1].density)
        if self.schedule and self.recipe.schedule.shape == "cubic":
            ends = zip(self.pools, self._keeps(self.levels), strict=True)
            return [keep_cubic(pool, self.judged, end, level, self.levels) for pool, end in ends]
        return self._keeps(level)

    def _keeps(self, level: int) -> list[int]:
        """Likewise, of prunings that each remove the same share."""
        densities = self.recipe.pruning.densities
        if level and densities:
            whole = self.levels if self.schedule else 1  # of one training, its last level has the density
            return self.keeps_at(densities[0] ** (level / whole) if self.schedule else densities[level - 1])
        return self._as_allocated([keep_count(pool, self.judged, level) for pool in self.pools])

    def keeps_at(self, density: float) -> list[int]:
        """Weights (or channels) that each pool keeps at a density."""
        rate = self.recipe.pruning.rate
        return self._as_allocated([keep_at(pool, self.judged, density, rate) for pool in self.pools])

    def _as_allocated(self, keeps: list[int]) -> list[int]:
        """As many weights in all, dealt out to layers by their shapes where the recipe says so."""
        allocation = self.recipe.pruning.allocation
        if allocation == "rate":
            return keeps
        known = {pool.layers[0]: keep for pool, keep in zip(self.pools, keeps, strict=True)}
        shapes = {pool.layers[0]: self.shapes[pool.layers[0]] for pool in self.pools if pool.rate}
        return list((known | keep_by_shape(shapes, sum(known[name] for name in shapes), allocation == "erk")).values())

    def keeps_on_the_way(self, level: int, done: float) -> list[int]:
        """Weights that each pool keeps when this share of the prunings to a level is over, by the same share each."""
        return [
            max(end, math.floor(count * (end / count) ** done + 0.5))
            for count, end in zip(self.keeps(0), self.keeps(level), strict=True)
        ]

    @property
    def densities(self) -> list[float]:
        """Density of each level."""
        total = sum(self.judged.values())
        return [sum(self.keeps(level)) / total for level in range(self.levels + 1)]

    def find_level(self, where: Where) -> int | None:
        """The level that is meant; None where there is none."""
        known = self.densities
        if where.level is not None:
            return where.level if where.level < len(known) else None
        wanted = where.density
        assert wanted is not None
        nearest = min(range(len(known)), key=lambda level: abs(known[level] - wanted))
        return nearest if abs(known[nearest] - wanted) <= SAME_DENSITY * wanted else None

    def start(self, level: int) -> int:
        """Step at which a level's training starts; for tickets that continue, the earliest one possible."""
        if self.schedule and level:
            return self.schedule.starts[level - 1]
        return 0 if level == 0 or self.recipe.pruning.after in ("reinit", "continue") else self.rewind

    def steps_from(self, level: int) -> int:
        """Optimizer steps of one replicate from a level on, as far as can be known before."""
        return sum(self.stop(index) - self.start(index) for index in range(level, self.levels + 1))

    def stop(self, level: int) -> int:
        """Step at which a level's training ends."""
        return self.start(level + 1) if self.schedule and level < self.levels else self.steps
