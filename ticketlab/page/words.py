"""Numbers as a page writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ticketlab.page.blocks import Table
from ticketlab.report import Estimate


def percents(share: float) -> str:
    """A share in per cent, without the sign, to four digits at most."""
    return f"{100 * share:.2f}" if share >= 0.1 else f"{100 * share:.3g}"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{percents(share)} %"


def interval(found: Estimate | Mapping[str, Any], form: str = ".2f") -> str:
    """Mean ± half of its interval, in per cent; the mean alone where there is no interval."""
    known = asdict(found) if isinstance(found, Estimate) else found
    half = "" if known["high"] is None else f" ± {100 * (known['high'] - known['mean']):.2f}"
    return f"{100 * known['mean']:{form}}{half}"


def points(found: Estimate | Mapping[str, Any]) -> str:
    """A difference of shares with its sign, in points."""
    return interval(found, "+.2f")


def plain(value: Any) -> str:
    """A fact as text."""
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def stand_in(facts: Mapping[str, Any]) -> str | None:
    """What must be known before any number is read, where other data stood in for the recipe's."""
    if not facts.get("stand_in_for"):
        return None
    return (
        f"Stand-in data: {facts['data']} in place of {facts['stand_in_for']}. No number here is comparable with "
        "one of the real data."
    )


def settings_table(name: str, title: str, known: Mapping[str, str]) -> Table:
    """Facts below each other."""
    return Table(
        name, title, ("", ""), list(known.items()), [{"field": key, "value": value} for key, value in known.items()]
    )
