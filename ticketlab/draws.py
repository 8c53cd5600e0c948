"""What an early-bird run drew, and what that cost against one-shot and iterative pruning to the same density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ticketlab.errors import RunError
from ticketlab.report import Estimate, estimate
from ticketlab.runs.store import Level, RunStore

VERSION = 1
"""Of the record's form."""
SEARCH = "search.json"
"""Record of a replicate's search, in its folder."""


@dataclass(frozen=True)
class Cost:
    """Training a ticket from nothing: the dense part, the ticket's, and what other ways would have cost.

    Operations are floating-point, forward and backward, evaluation not counted.
    """

    dense: float
    ticket: float
    one_shot: float
    """The dense network to its end, then the ticket."""
    imp: float
    """Iterative pruning at the recipe's rate, every level trained in full."""

    @property
    def total(self) -> float:
        """Search and ticket together."""
        return self.dense + self.ticket

    def percentages(self) -> tuple[str, str]:
        """The total as a percentage of one-shot and of iterative pruning's cost."""
        return f"{100 * self.total / self.one_shot:.0f}", f"{100 * self.total / self.imp:.0f}"


@dataclass(frozen=True)
class Draw:
    """One ticket of one replicate."""

    replicate: int
    level: int
    density: float
    """Asked for."""
    step: int
    total_steps: int
    steps: int
    """Trained in all: dense until the draw, then the ticket."""
    distance: float | None
    settled: bool
    chosen: bool
    """Drawn when the search said so; False where the recipe fixed the step."""
    test_accuracy: float | None
    """None while the ticket is not trained."""
    minus_end: float | None
    """Test accuracy minus that of the ticket drawn at the end of the same training, where there is one."""
    executed: Cost
    """Operations that ran: masked weights are multiplied like others, but in layers that train as sparse ones."""
    remaining: Cost
    """Operations with remaining weights alone."""
    seconds: Cost
    is_measured: bool
    """Whether one-shot pruning's seconds are measured: the same run also drew this density at the end."""


def draws(store: RunStore, levels: Sequence[Level]) -> list[Draw]:
    """Every ticket that has been drawn, by replicate and level; none in runs of other methods."""
    found: list[Draw] = []
    for replicate in store.replicates():
        name = f"replicate_{replicate}/{SEARCH}"
        if store.has_result(name):
            trained = {level.level: level for level in levels if level.replicate == replicate}
            record = store.read_result(name)
            if record.get("version") != VERSION:
                raise RunError(
                    f"{store.path / name}: written by another version of ticketlab; delete the run and repeat it"
                )
            found += [_draw(replicate, draw, record, trained) for draw in record["draws"]]
    return found


def _draw(replicate: int, draw: Mapping[str, Any], record: Mapping[str, Any], trained: Mapping[int, Level]) -> Draw:
    total, level = record["total_steps"], trained.get(draw["level"])
    last = next((d for d in record["draws"] if d["density"] == draw["density"] and d["step"] == total), None)
    end = trained.get(last["level"]) if last else None
    return Draw(
        replicate=replicate,
        level=draw["level"],
        density=draw["density"],
        step=draw["step"],
        total_steps=total,
        steps=draw["step"] + total - draw["start"],
        distance=draw["distance"],
        settled=draw["settled"],
        chosen=draw["chosen"],
        test_accuracy=level.test_accuracy if level else None,
        minus_end=level.test_accuracy - end.test_accuracy if level and end else None,
        executed=_operations(draw, record, "executed"),
        remaining=_operations(draw, record, "remaining"),
        seconds=_seconds(draw, record, level, last, end),
        is_measured=end is not None,
    )


def _operations(draw: Mapping[str, Any], record: Mapping[str, Any], kind: str) -> Cost:
    """Operations of a ticket's way and of its rivals'; a rival's pruned levels restart at the rewind step."""
    counted, batch, total = draw["operations"], record["batch_size"], record["total_steps"]
    again = record["again"]
    return Cost(
        dense=counted["dense"] * batch * draw["step"],
        ticket=counted[kind] * batch * (total - draw["start"]),
        one_shot=batch * (counted["dense"] * total + counted[kind] * again),
        imp=batch * (counted["dense"] * total + sum(counted[f"imp_{kind}"][1:]) * again),
    )


def _seconds(
    draw: Mapping[str, Any],
    record: Mapping[str, Any],
    level: Level | None,
    last: Mapping[str, Any] | None,
    end: Level | None,
) -> Cost:
    """Seconds likewise, rivals' measured where a ticket was drawn at the end; only a search makes masks on its way."""
    counted, total = draw["operations"], record["total_steps"]
    again = record["again"]
    per_step = (draw["seconds"] - draw["mask_seconds"]) / draw["step"]
    ticket = level.seconds if level else 0.0
    ticket_step = ticket / max(1, level.steps) if level else 0.0
    rungs = sum(count / counted["dense"] for count in counted["imp_executed"][1:-1])
    dense_end = last["seconds"] - last["mask_seconds"] if last else per_step * total
    ticket_end = end.seconds if end else ticket_step * again
    return Cost(
        dense=draw["seconds"] - (0 if draw["chosen"] else draw["mask_seconds"]),
        ticket=ticket,
        one_shot=dense_end + ticket_end,
        imp=dense_end + rungs * again * per_step + ticket_end,
    )


@dataclass(frozen=True)
class DrawRow:
    """A density over all replicates: those that the search chose, or those at one fixed step."""

    level: int
    density: float
    chosen: bool
    step: float
    """Mean."""
    share: float
    """Of the whole training."""
    steps: float
    """Trained in all, mean."""
    settled: int
    """Replicates whose mask had settled."""
    test_accuracy: Estimate
    minus_end: Estimate | None
    executed: Cost
    """Means, as those below."""
    remaining: Cost
    seconds: Cost
    is_measured: bool


def draw_rows(found: Sequence[Draw]) -> list[DrawRow]:
    """One row for each density and way of drawing, of tickets that are trained."""
    trained = [draw for draw in found if draw.test_accuracy is not None]
    return [_row([draw for draw in trained if draw.level == level]) for level in sorted({d.level for d in trained})]


def _row(same: Sequence[Draw]) -> DrawRow:
    ends = [draw.minus_end for draw in same if draw.minus_end is not None]
    return DrawRow(
        level=same[0].level,
        density=same[0].density,
        chosen=same[0].chosen,
        step=fmean(draw.step for draw in same),
        share=fmean(draw.step / draw.total_steps for draw in same),
        steps=fmean(draw.steps for draw in same),
        settled=sum(draw.settled for draw in same),
        test_accuracy=estimate([draw.test_accuracy for draw in same if draw.test_accuracy is not None]),
        minus_end=estimate(ends) if ends else None,
        executed=_mean([draw.executed for draw in same]),
        remaining=_mean([draw.remaining for draw in same]),
        seconds=_mean([draw.seconds for draw in same]),
        is_measured=all(draw.is_measured for draw in same),
    )


def _mean(costs: Sequence[Cost]) -> Cost:
    return Cost(*(fmean(getattr(cost, name) for cost in costs) for name in ("dense", "ticket", "one_shot", "imp")))
