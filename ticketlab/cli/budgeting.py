"""What was chosen for a budget and why, in plain lines."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ticketlab.cli.render import note, result
from ticketlab.workflows.budget import Budget


def told(chosen: Budget, recipe: Path, overrides: Sequence[str], tell: Callable[[str], None]) -> None:
    """The choice, its reasons, and the command that repeats it without timing."""
    if chosen.kept_in is not None:
        tell(f"budget {chosen.asked}: as chosen before, in {chosen.kept_in}")
    for reason in chosen.reasons:
        tell(f"budget {chosen.asked}: {reason}")
    tell(f"the same without timing: {command(chosen, recipe, overrides)}")


def told_aside(chosen: Budget, recipe: Path, overrides: Sequence[str]) -> None:
    """The same on stderr, before a run starts."""
    told(chosen, recipe, overrides, note)


def planned(chosen: Budget, recipe: Path, overrides: Sequence[str], json: bool) -> None:
    """The choice alone."""
    if json:
        result({"budget": record(chosen), "command": command(chosen, recipe, overrides)})
    else:
        told(chosen, recipe, overrides, result)


def record(chosen: Budget) -> dict[str, Any]:
    """The choice for JSON."""
    return next(iter(chosen.record().values()))


def command(chosen: Budget, recipe: Path, overrides: Sequence[str]) -> str:
    """The command line that asks for the chosen run."""
    settings = [word for text in (*overrides, *chosen.overrides) for word in ("--set", text)]
    return shlex.join(["ticketlab", "prune", str(recipe), *settings])
