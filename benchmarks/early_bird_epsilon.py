"""Which ε an early-bird search should have: draw step and what the ticket loses, for each ε, density and mask interval.

    ticketlab prune recipes/early_bird_epsilon.yaml       # masks every 25 steps, tickets at fixed steps
    python benchmarks/early_bird_epsilon.py runs/early_bird_epsilon-…
    python benchmarks/early_bird_epsilon.py runs/early_bird_epsilon-… --against runs/early_bird_epsilon-…

Each run recorded the distances of all its masks and trained tickets drawn at fixed steps and at the end. From the
distances follows the step at which any ε would have drawn; the ticket's accuracy there is interpolated between the
fixed steps. Loss: accuracy of the ticket drawn at the end of the same training minus that.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ticketlab.draws import SEARCH, draws
from ticketlab.report import estimate, run_levels
from ticketlab.runs.store import RunStore
from ticketlab.workflows.targets import SPAN

WINDOW = 5
PARTS = (160, 80, 40, 20)
"""Masks in a whole training."""


@dataclass(frozen=True)
class Search:
    """One density of one replicate."""

    run: str
    replicate: int
    density: float
    total: int
    steps: list[int]
    distances: list[list[float]]
    tickets: dict[int, float]
    """Step of a draw → test accuracy, per cent."""

    def draw_step(self, epsilon: float, parts: int) -> int | None:
        """When ε would have drawn with masks `total / parts` steps apart; None for never."""
        every = max(1, self.total // parts // self.steps[0])
        for index in range(every * WINDOW - 1, len(self.steps), every):
            row = self.distances[index]
            if max(row[len(row) - every * gap] for gap in range(1, WINDOW)) < epsilon:
                return self.steps[index]
        return None

    def loss(self, step: int) -> float:
        """Points that a ticket drawn at a step loses against the one drawn at the end."""
        at = sorted(self.tickets)
        return self.tickets[self.total] - float(np.interp(step, at, [self.tickets[s] for s in at]))


def searches(path: Path) -> Iterator[Search]:
    """Every density of every finished replicate of a run."""
    store = RunStore(path)
    drawn = draws(store, run_levels(store))
    for replicate in store.replicates():
        if not store.has_result(f"replicate_{replicate}/{SEARCH}"):
            continue
        record = store.read_result(f"replicate_{replicate}/{SEARCH}")
        for track in record["tracks"]:
            tickets = {
                draw.step: 100 * draw.test_accuracy
                for draw in drawn
                if (draw.replicate, draw.density) == (replicate, track["density"]) and draw.test_accuracy is not None
            }
            total = record["total_steps"]
            if len(tickets) == len([draw for draw in record["draws"] if draw["density"] == track["density"]]):
                name = path.name.rpartition("-")[0]
                yield Search(name, replicate, track["density"], total, record["steps"], track["distances"], tickets)


def table(found: Sequence[Search], epsilons: Sequence[float], parts: int) -> None:
    """Rows: ε of a window over a tenth of the training. Columns: density.

    Cells: mean share of training at the draw, mean loss ± interval; how many drew at all, where not all did.
    """
    densities = sorted({search.density for search in found}, reverse=True)
    print("| ε | " + " | ".join(f"{100 * density:g} %" for density in densities) + " | all |")
    print("|---|" + "---|" * (len(densities) + 1))
    groups = [[s for s in found if s.density == density] for density in densities]
    rows = {f"{epsilon:g}": epsilon * math.sqrt((WINDOW - 1) / parts / SPAN) for epsilon in epsilons}
    if parts != (WINDOW - 1) / SPAN:
        rows[f"{epsilons[0]:g}, not scaled"] = epsilons[0]
    for name, epsilon in rows.items():
        print(f"| {name} | " + " | ".join(cell(group, epsilon, parts) for group in [*groups, list(found)]) + " |")
    print()


def cell(group: Sequence[Search], epsilon: float, parts: int) -> str:
    """Draw and loss of one ε over replicates."""
    steps = [(search, search.draw_step(epsilon, parts)) for search in group]
    drawn = [(search, step) for search, step in steps if step is not None]
    if not drawn:
        return "never"
    share = statistics.fmean(step / search.total for search, step in drawn)
    loss = estimate([search.loss(step) for search, step in drawn])
    half = "" if loss.high is None else f" ± {loss.high - loss.mean:.2f}"
    never = "" if len(drawn) == len(steps) else f" ({len(drawn)} of {len(steps)})"
    return f"{100 * share:.0f} %: {loss.mean:+.2f}{half}{never}"


def fixed_draws(found: Sequence[Search]) -> None:
    """What tickets of each fixed step lose, and how far their masks then are from their window (T/40)."""
    densities = sorted({search.density for search in found}, reverse=True)
    print("| drawn at | " + " | ".join(f"{100 * density:g} %" for density in densities) + " |")
    print("|---|" + "---|" * len(densities))
    for step in sorted({step for search in found for step in search.tickets}):
        cells = []
        for density in densities:
            group = [search for search in found if search.density == density]
            loss = estimate([search.loss(step) for search in group])
            distance = [d for s in group if (d := distance_at(s, step)) is not None]
            half = "" if loss.high is None else f" ± {loss.high - loss.mean:.2f}"
            cells.append(f"{loss.mean:+.2f}{half}" + (f" ({statistics.fmean(distance):.2f})" if distance else ""))
        print(f"| {step:,} | " + " | ".join(cells) + " |")
    print()


def against(found: Sequence[Search], others: Sequence[Search]) -> None:
    """Mean loss of two runs at each fixed step, and their difference, paired by replicate and density."""
    pairs = {(s.replicate, s.density): s for s in others}
    both = [(s, pairs[s.replicate, s.density]) for s in found if (s.replicate, s.density) in pairs]
    print("| drawn at | this run | the other | difference, paired |")
    print("|---|---|---|---|")
    for step in sorted(set.intersection(*(set(s.tickets) for pair in both for s in pair))):
        ours, theirs = ([pair[n].loss(step) for pair in both] for n in (0, 1))
        gain = estimate([b - a for a, b in zip(ours, theirs, strict=True)])
        half = "" if gain.high is None else f" ± {gain.high - gain.mean:.2f}"
        means = f"{statistics.fmean(ours):+.2f} | {statistics.fmean(theirs):+.2f}"
        print(f"| {step:,} | {means} | {gain.mean:+.2f}{half} (n = {gain.n}) |")
    print()


def distance_at(search: Search, step: int) -> float | None:
    """Largest distance to the window of masks a fortieth of the training apart."""
    every = max(1, search.total // 40 // search.steps[0])
    index = search.steps.index(step)
    row = search.distances[index]
    return max(row[len(row) - every * gap] for gap in range(1, WINDOW)) if index >= every * (WINDOW - 1) else None


def main() -> None:
    """Print the tables of the given runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--epsilons", default="0.3,0.2,0.25,0.28,0.32,0.34,0.36,0.4")
    parser.add_argument("--against", type=Path, help="A run with another criterion, to compare the first run with.")
    told = parser.parse_args()
    if told.against:
        against(list(searches(told.runs[0])), list(searches(told.against)))
        return
    epsilons = [float(text) for text in told.epsilons.split(",")]
    by_run = {path: list(searches(path)) for path in told.runs}
    for path, found in by_run.items():
        count = len({search.replicate for search in found})
        print(f"## {path.name}: tickets of fixed steps, points lost (mask distance), n = {count}\n")
        fixed_draws(found)
        for parts in PARTS:
            print(f"### a mask every 1/{parts} of the training: share of training at the draw, points lost\n")
            table(found, epsilons, parts)


if __name__ == "__main__":
    main()
