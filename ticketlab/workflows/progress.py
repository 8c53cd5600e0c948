"""What is seen of a run as it goes on: steps, notices, drawn tickets, finished levels."""

from __future__ import annotations

from dataclasses import dataclass

from ticketlab.runs.store import Level


@dataclass(frozen=True)
class Notice:
    """Something that the user should know and that is no result."""

    text: str


@dataclass(frozen=True)
class Drawn:
    """A ticket was drawn from a network in training."""

    replicate: int
    density: float
    step: int
    stop: int
    chosen: bool
    """Whether the search chose the step; False where the recipe fixed it."""
    settled: bool
    """Whether its mask had stopped moving; False where patience or the training ended first."""
    distance: float | None
    """Largest one to the other masks of the window; None before the window is full."""


@dataclass(frozen=True)
class Progress:
    """How far a level is."""

    replicate: int
    level: int
    start: int
    step: int
    stop: int
    val_accuracy: float


Seen = Progress | Notice | Drawn | Level
"""What a level lets be seen of itself."""
