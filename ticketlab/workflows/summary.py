"""A run as a whole for TensorBoard: recipe, hyper-parameters, and each level that every replicate has finished."""

from __future__ import annotations

from itertools import count, takewhile
from typing import Any, Self

from ticketlab.pruning.overlap import between_replicates, by_chance
from ticketlab.recipe import Recipe, Section, dotted
from ticketlab.recipe_file import recipe_yaml
from ticketlab.report import summarise
from ticketlab.runs.store import RunStore


class Summary:
    """Written while a run trains: all common levels at first, later ones as they come; a level's masks are read once.

    What an earlier summary of the run said is dropped.
    """

    def __init__(self, store: RunStore, recipe: Recipe) -> None:
        from ticketlab.runs.tensorboard import RunEvents

        self._store, self._recipe, self._written = store, recipe, 0
        self._events = RunEvents(store.path, recipe_yaml(recipe), flat_settings(recipe))
        self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit: Any) -> None:
        self._events.__exit__(*exit)

    def update(self) -> None:
        """Add the levels that every replicate has finished by now."""
        for level in range(self._written, common_levels(self._store, self._recipe)):
            self._events.level(level, _row(self._store, self._recipe, level))
            self._written = level + 1


def common_levels(store: RunStore, recipe: Recipe) -> int:
    """How many levels, from 0, every replicate has finished."""
    is_common = (all(store.has_level(replicate, level) for replicate in _replicates(recipe)) for level in count())
    return sum(takewhile(bool, is_common))


def _replicates(recipe: Recipe) -> range:
    return range(1, recipe.replicates + 1)


def _row(store: RunStore, recipe: Recipe, level: int) -> dict[str, Any]:
    """A level over its replicates, with what their masks have in common."""
    (row,) = summarise([store.read_level(replicate, level) for replicate in _replicates(recipe)])
    tickets = [store.read_ticket(replicate, level) for replicate in _replicates(recipe)] if level else []
    masks = [ticket.mask for ticket in tickets if ticket is not None]
    overlap = between_replicates(masks)
    return {
        "density": row.density,
        "mean": row.test_accuracy.mean,
        "lowest": row.lowest,
        "highest": row.highest,
        "overlap": overlap,
        "by_chance": None if overlap is None else by_chance(masks),
    }


def flat_settings(recipe: Recipe) -> dict[str, str | float | int | bool]:
    """The recipe as dotted names and plain values, for TensorBoard's table of hyper-parameters.

    Sections that are left as they are belong to other methods or commands.
    """
    left = {name for name, field in Recipe.model_fields.items() if getattr(recipe, name) == field.default}
    sections = {name for name in left if isinstance(getattr(recipe, name), Section)}
    settings = dotted(recipe.model_dump(mode="json", exclude={"claims", *sections}))
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in settings.items()
        if value not in (None, [])
    }
