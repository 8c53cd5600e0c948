"""Counts and times as people say them, on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterable

UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"))


def counted(number: int, word: str) -> str:
    """`1 replicate`, `2 replicates`."""
    return f"{number} {word}{'s' * (number != 1)}"


def span(counts: Iterable[int]) -> str:
    """`5` where all are the same, else `2 to 5`."""
    known = sorted(set(counts))
    return " to ".join(map(str, known[:1] + known[1:][-1:]))


def long_time(seconds: float) -> str:
    """A time in the unit that fits."""
    for size, unit in UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
