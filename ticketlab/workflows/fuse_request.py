"""What the user asks of a fusion, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ticketlab.errors import FusionError
from ticketlab.fusion.combine import combiners
from ticketlab.fusion.select import selectors
from ticketlab.fusion.widths import Widths
from ticketlab.registry import check_options
from ticketlab.steps import parse_duration

BUDGETS = ("widths", "share", "params", "macs", "latency", "keep_accuracy")
"""What says how many units stay; one of them, else half a point of accuracy."""


@dataclass(frozen=True)
class Request:
    """What the user asks of a fusion; with the source it decides the result."""

    select: str = "greedy"
    combine: str = "least_squares"
    options: Mapping[str, Any] = field(default_factory=dict)
    widths: Widths | None = None
    """Exact widths by group."""
    share: float | None = None
    """Share of units to keep, the same in every group."""
    params: int | None = None
    macs: int | None = None
    latency: float | None = None
    """Microseconds of one call for one image."""
    keep_accuracy: float | None = None
    """Points of validation accuracy that may be lost."""
    round_to: int = 1
    allocation: str | None = None
    """How a budget is divided: by error `curves`, or `uniform`, the same share everywhere.

    None: by curves, for methods that look at images anyway.
    """
    exact: bool = False
    """Only what changes nothing."""
    stream: bool = False
    """Fuse residual streams too, not only what is inside the branches."""
    fold_norms: bool = False
    images: int | None = None
    refit: bool | None = None
    """None: with least squares only."""
    distil: str | None = None
    """Seconds (`5s`), steps or epochs of label-free distillation."""
    retrain: str | None = None
    """Steps or epochs of training with labels."""
    control: bool = True
    """With `retrain`: the same widths trained from scratch, too."""
    groups: Sequence[Mapping[str, Sequence[str]]] | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise FusionError for what contradicts itself or does not exist."""
        selectors.find(self.select)
        problems = [message for _, message in check_options(combiners.find(self.combine), self.options)]
        asked = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(asked) > 1:
            problems.append(f"choose one of {', '.join('--' + name.replace('_', '-') for name in asked)}")
        if self.exact and asked:
            problems.append(f"--exact changes nothing, so --{asked[0].replace('_', '-')} has no meaning with it")
        if self.allocation not in (None, "curves", "uniform"):
            problems.append(f"--allocation is curves or uniform, not '{self.allocation}'")
        for name in ("latency", "keep_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                problems.append(f"--{name.replace('_', '-')} is a finite number from 0 on (got {value})")
        if self.share is not None and not 0 < self.share <= 1:
            problems.append("--share is above 0 and at most 1")
        for name, text in (("--distil", self.distil), ("--retrain", self.retrain)):
            wrong = _wrong_time(name, text)
            problems += [f"{name}: {wrong}"] if wrong else []
        if problems:
            raise FusionError("; ".join(problems))

    def needs(self) -> frozenset[str]:
        """What the method wants to see: nothing, activations, or patches (which include activations)."""
        return selectors.needs(self.select) | combiners.needs(self.combine)

    def uses_curves(self) -> bool:
        """Whether error curves decide the widths."""
        return (
            self.widths is None
            and self.share is None
            and (self.allocation == "curves" or (self.allocation is None and bool(self.needs())))
        )

    def wants_refit(self) -> bool:
        """Whether the fused network is fitted once more."""
        return self.combine == "least_squares" if self.refit is None else self.refit

    def asked(self) -> dict[str, Any]:
        """What differs from the defaults."""
        default = Request()
        return {name: value for name, value in asdict(self).items() if value != getattr(default, name)}


def seconds_of(text: str) -> float | None:
    """5.0 of `5s`; None where it is no positive number of seconds."""
    try:
        found = float(text.removesuffix("s")) if text.endswith("s") else 0.0
    except ValueError:
        return None
    return found if 0 < found < math.inf else None


def _wrong_time(name: str, text: str | None) -> str | None:
    """What is wrong with a length of training."""
    if text is None or (name == "--distil" and seconds_of(text) is not None):
        return None
    try:
        return None if parse_duration(text).count else "needs at least 1it"
    except ValueError as error:
        return f"{error}" + (", or as '5s' (seconds)" if name == "--distil" else "") + f"; got '{text}'"
