"""Tables from finished runs: mean, interval and n per level. Reads runs, never trains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.special import stdtrit

from ticketlab.recipe import Recipe
from ticketlab.runs.store import Level, RunStore

CONFIDENCE = 0.95
SAME_DENSITY = 0.02
"""Densities that differ by no more than this share of themselves count as one."""


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates with its 95 % interval (Student's t); no interval from a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """One level over all replicates that finished it."""

    level: int
    density: float
    effective_density: float | None
    """Mean density of the weights on paths from input to output; None where one is unknown."""
    test_accuracy: Estimate
    minus_dense: Estimate | None
    """Test accuracy minus that of level 0 of the same replicate; None where level 0 ended early."""
    final_test_accuracy: Estimate
    val_accuracy: Estimate
    early_stop_step: Estimate
    step_ms: float
    """Median over replicates."""
    lowest: float
    """Smallest test accuracy of a replicate."""
    highest: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of a sample, assumed normal."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    half = half_width(statistics.stdev(values), n)
    return Estimate(mean, mean - half, mean + half, n)


def half_width(deviation: float, n: int) -> float:
    """Half of the 95 % interval of a mean of n values with this standard deviation (Student's t); n is 2 or more."""
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n)


def deviation(levels: Sequence[Level]) -> float | None:
    """Standard deviation of test accuracy between replicates, pooled over levels; None without a second replicate."""
    squares, freedom = 0.0, 0
    for index in {level.level for level in levels}:
        same = [level.test_accuracy for level in levels if level.level == index]
        if len(same) > 1:
            squares += statistics.variance(same) * (len(same) - 1)
            freedom += len(same) - 1
    return math.sqrt(squares / freedom) if freedom else None


def summarise(levels: Sequence[Level]) -> list[Row]:
    """One row for each level, in order."""
    rows = []
    end = max(map(_end, levels), default=0)
    dense = {level.replicate: level.test_accuracy for level in levels if level.level == 0 and _end(level) == end}
    for index in sorted({level.level for level in levels}):
        same = [level for level in levels if level.level == index]
        accuracies = [level.test_accuracy for level in same]
        rows.append(
            Row(
                level=index,
                density=same[0].density,
                effective_density=mean_known([level.effective_density for level in same]),
                test_accuracy=estimate(accuracies),
                minus_dense=_minus(same, dense),
                final_test_accuracy=estimate([level.final_test_accuracy for level in same]),
                val_accuracy=estimate([level.val_accuracy for level in same]),
                early_stop_step=estimate([float(level.early_stop_step) for level in same]),
                step_ms=statistics.median(level.step_ms for level in same),
                lowest=min(accuracies),
                highest=max(accuracies),
            )
        )
    return rows


def whole(levels: Sequence[Level], recipe: Recipe) -> list[Level]:
    """Levels of a run that trained through the whole schedule, and so stand for a network.

    Those on the way of a network that is pruned in training do not, nor does an early-bird search that stopped.
    """
    if recipe.prunes_in_training:
        return [level for level in levels if level.level == recipe.pruning.levels]
    if recipe.method == "early_bird" and not any(level.level for level in levels):
        return []
    end = max(map(_end, levels), default=0)
    return [level for level in levels if _end(level) == end]


PARTS = {"early_bird": "search", "gradual": "start", "sign_flip": "start"}
"""Method → what its level 0 is where that is not the dense network's whole training."""


def dense_row(rows: Sequence[Row], method: str) -> Row | None:
    """The dense network's row; None where level 0 did not train it to the end, or may not have."""
    if not rows or rows[0].minus_dense is None or (len(rows) == 1 and method in PARTS):
        return None
    return rows[0]


def level_names(rows: Sequence[Row], method: str) -> list[str]:
    """Numbers of the levels, the first with what it is where it is not the dense network."""
    first = "0" if dense_row(rows, method) else f"0 ({PARTS.get(method, 'part')})"
    return [str(row.level) if row.level else first for row in rows]


def telling(rows: Sequence[Row]) -> list[Row]:
    """The rows to look at first: dense, the sparsest as good on validation data, and the sparsest of all."""
    if not rows:
        return []
    return [row for row in rows if row in (rows[0], winning(rows), sparsest(rows))]


def winning(rows: Sequence[Row]) -> Row:
    """The sparsest level whose mean validation accuracy is no lower than the first's, the dense network's."""
    return sparsest([row for row in rows if row.val_accuracy.mean >= rows[0].val_accuracy.mean])


def sparsest(rows: Sequence[Row]) -> Row:
    """The row of the smallest density, the deepest of several."""
    return min(rows, key=lambda row: (row.density, -row.level))


def sum_known(values: Iterable[float | None]) -> float | None:
    """Sum of values that are all known; None where one is not."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of values that are all known; None where one is not."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _end(level: Level) -> float:
    """The step of the schedule at which a level ended."""
    return level.curve[-1]["step"] if level.curve else level.steps


def _minus(levels: Sequence[Level], dense: Mapping[int, float]) -> Estimate | None:
    paired = [level.test_accuracy - dense[level.replicate] for level in levels if level.replicate in dense]
    return estimate(paired) if len(paired) == len(levels) else None


def run_levels(store: RunStore) -> list[Level]:
    """Every finished level of a run."""
    return [level for replicate in store.replicates() for level in store.levels(replicate)]


def run_report(store: RunStore, levels: Sequence[Level]) -> dict[str, Any]:
    """A run as one JSON object (shared by `prune --json` and `runs show --json`)."""
    manifest = store.read_manifest()
    replicates: dict[int, list[Level]] = {}
    for level in levels:
        replicates.setdefault(level.replicate, []).append(level)
    return {
        "run": str(store.path),
        "recipe": manifest.get("recipe"),
        "hash": manifest.get("hash"),
        "method": manifest.get("method"),
        "state": state(store, manifest),
        "device": manifest.get("device"),
        "data": manifest.get("data"),
        "stand_in_for": manifest.get("stand_in_for"),
        "seconds": round(sum(level.seconds for level in levels), 3),
        "replicates": [
            {"replicate": number, "seed": found[0].seed, "levels": [_plain(level) for level in found]}
            for number, found in sorted(replicates.items())
        ],
        "summary": [asdict(row) for row in summarise(levels)],
    }


def state(store: RunStore, manifest: dict[str, Any]) -> str:
    """finished, running, interrupted or failed; a run that no process holds is not running."""
    known = str(manifest.get("state", "unknown"))
    return "interrupted" if known == "running" and not store.is_held() else known


def _plain(level: Level) -> dict[str, Any]:
    return {k: v for k, v in level.summary().items() if k not in ("replicate", "seed")}
