"""A pruning run, read once for its page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ticketlab.pruning.masks import Mask
from ticketlab.recipe import Recipe
from ticketlab.recipe_file import read_recipe
from ticketlab.report import Row, dense_row, run_levels, summarise
from ticketlab.runs.results import control_record
from ticketlab.runs.store import Level, RunStore


@dataclass(frozen=True)
class Facts:
    """A run, read once."""

    store: RunStore

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What made it."""
        return self.store.read_manifest()

    @cached_property
    def recipe(self) -> Recipe:
        """As it was run."""
        return read_recipe(self.store.witness).recipe

    @cached_property
    def levels(self) -> list[Level]:
        """Of all replicates."""
        return run_levels(self.store)

    @cached_property
    def rows(self) -> list[Row]:
        """Of each level, over replicates."""
        return summarise(self.levels)

    @cached_property
    def dense(self) -> Row | None:
        """The dense network's row, where one was trained to the end."""
        return dense_row(self.rows, self.recipe.method)

    @cached_property
    def densities(self) -> dict[int, float]:
        """Of each level."""
        return {row.level: row.density for row in self.rows}

    @cached_property
    def masks(self) -> dict[int, dict[int, Mask]]:
        """Replicate → level → mask, of finished levels."""
        found: dict[int, dict[int, Mask]] = {}
        for level in self.levels:
            ticket = self.store.read_ticket(level.replicate, level.level)
            if ticket is not None:
                found.setdefault(level.replicate, {})[level.level] = ticket.mask
        return found

    @cached_property
    def controls(self) -> dict[int, dict[str, Any]]:
        """Level → record of its controls."""
        names = {row.level: control_record(row.level) for row in self.rows}
        return {level: self.store.read_result(name) for level, name in names.items() if self.store.has_result(name)}

    def record(self, name: str) -> dict[str, Any] | None:
        """What another command left in the run."""
        return self.store.read_result(name) if self.store.has_result(name) else None
