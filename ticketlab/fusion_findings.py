"""What a fusion study says: tables, and a verdict on each hypothesis that was written down before it ran."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ticketlab.report import Estimate, estimate

Row = Mapping[str, Any]
Rows = Sequence[Row]

DROP, FOLD, LEAST_SQUARES = ("l1", "drop"), ("l1", "fold"), ("greedy", "least_squares")


@dataclass(frozen=True)
class Finding:
    """A hypothesis, what was measured, and whether that supports it."""

    hypothesis: str
    claim: str
    measured: str
    verdict: str
    """supported, refuted, or not measured."""


@dataclass(frozen=True)
class Point:
    """One method at one size on one source, over replicates. Accuracies and losses in points of 100."""

    params: int
    share: float
    accuracy: Estimate
    loss: Estimate
    """Source's accuracy minus the fused network's, paired."""


def method_name(row: Row) -> str:
    """A fuser's name in tables and figures."""
    parts = [f"{row['select']} + {row['combine']}".replace("none + ", "")]
    parts += ["curves"] if row["allocation"] == "curves" else []
    parts += ["refit"] if row["refit"] else []
    parts += ["distilled"] if row["distil"] else []
    return ", ".join(parts).replace("_", " ")


def pick(rows: Iterable[Row], method: tuple[str, str] | None = None, **values: Any) -> list[Row]:
    """Rows of a method with these values; stages that are not named are left out (refit, distil, epochs)."""
    plain = {"refit": False, "distil": 0, "epochs": 0, "allocation": "uniform", **values}
    return [
        row
        for row in rows
        if (method is None or (row["select"], row["combine"]) == method)
        and all(row[name] == value for name, value in plain.items())
    ]


def points(rows: Rows) -> list[Point]:
    """Rows of one method on one source, put together over replicates; the smallest network first."""
    by_share: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_share[row["share"]].append(row)
    made = [
        Point(
            params=round(sum(row["params"] for row in same) / len(same)),
            share=share,
            accuracy=estimate([100 * row["accuracy"] for row in same]),
            loss=estimate([100 * (row["source_accuracy"] - row["accuracy"]) for row in same]),
        )
        for share, same in by_share.items()
    ]
    return sorted(made, key=lambda point: point.params)


def levels(rows: Rows) -> list[int]:
    """Levels that were fused, the densest first."""
    return sorted({row["level"] for row in rows})


def of_run(rows: Rows, run: str) -> list[Row]:
    """Rows of one run."""
    return [row for row in rows if row["run"] == run]


def runs(rows: Rows) -> list[str]:
    """Runs in a study; the first is the one of the full grid."""
    return sorted({row["run"] for row in rows}, key=lambda run: -len(of_run(rows, run)))


def smallest_within(rows: Rows, limit: float = 1.0) -> dict[str, dict[int, int | None]]:
    """Method → level → parameters of the smallest network that loses at most `limit` points on average."""
    table: dict[str, dict[int, int | None]] = {}
    untrained = [row for row in rows if row["epochs"] == 0]
    for name in dict.fromkeys(method_name(row) for row in untrained):
        table[name] = {}
        for level in levels(rows):
            found = points([r for r in untrained if method_name(r) == name and r["level"] == level])
            table[name][level] = next((p.params for p in found if p.loss.mean <= limit), None)
    return table


def lost_per_halving(found: Sequence[Point]) -> float:
    """Mean points lost, over the logarithm of size: the area between a curve and its source's accuracy."""
    area = width = 0.0
    for small, large in pairwise(found):
        step = math.log2(large.params / small.params)
        area += step * (small.loss.mean + large.loss.mean) / 2
        width += step
    return area / width if width else math.nan


# --- hypotheses


def findings(rows: Rows) -> list[Finding]:
    """A verdict on H1 to H6; the thresholds are part of the hypotheses."""
    first = of_run(rows, runs(rows)[0]) if rows else []
    return [
        _guarded(name, claim, judge, rows if name == "H5" else first) for name, (claim, judge) in HYPOTHESES.items()
    ]


def _guarded(name: str, claim: str, judge: Callable[[Rows], tuple[str, bool]], rows: Rows) -> Finding:
    try:
        measured, is_supported = judge(rows)
    except (ValueError, ZeroDivisionError, IndexError) as error:
        return Finding(name, claim, f"no rows for it ({type(error).__name__})", "not measured")
    return Finding(name, claim, measured, "supported" if is_supported else "refuted")


def _mean(rows: Rows) -> float:
    """Mean accuracy in points; raises ValueError without rows."""
    if not rows:
        raise ValueError
    return 100 * sum(row["accuracy"] for row in rows) / len(rows)


def _loss(rows: Rows) -> float:
    if not rows:
        raise ValueError
    return 100 * sum(row["source_accuracy"] - row["accuracy"] for row in rows) / len(rows)


def _h1(rows: Rows) -> tuple[str, bool]:
    selections = ("random", "l1", "greedy")
    bare = {s: _mean(pick(rows, (s, "drop"), share=0.25)) for s in selections}
    fitted = {s: _mean(pick(rows, (s, "least_squares"), share=0.25)) for s in selections}
    gain = min(fitted[s] - bare[s] for s in selections)
    spread = max(bare.values()) - min(bare.values())
    measured = (
        f"least squares gains {gain:.1f} points or more, selection alone up to {spread:.1f}; with least squares "
        f"random {fitted['random']:.1f}, l1 {fitted['l1']:.1f}, greedy {fitted['greedy']:.1f}"
    )
    return measured, gain > spread and fitted["greedy"] > fitted["l1"] > fitted["random"]


def _h2(rows: Rows) -> tuple[str, bool]:
    told, good = [], []
    for share in (0.25, 0.15, 0.1, 0.05):
        bare = _mean(pick(rows, DROP, share=share))
        allocated = _mean(pick(rows, DROP, share=share, allocation="curves")) - bare
        fitted = _mean(pick(rows, ("l1", "least_squares"), share=share)) - bare
        told.append(f"{100 * share:.0f} %: {allocated:+.1f} against {fitted:+.1f}")
        good.append(allocated >= fitted / 2)
    return "; ".join(told), all(good)


def _h3(rows: Rows) -> tuple[str, bool]:
    losses = {level: _loss(pick(rows, LEAST_SQUARES, share=0.25, level=level)) for level in levels(rows)}
    told = ", ".join(f"level {level} {loss:.1f}" for level, loss in losses.items())
    dense, *sparse = losses.values()
    return f"points lost: {told}", min(sparse) >= dense - 0.5


def _h4(rows: Rows) -> tuple[str, bool]:
    methods = (DROP, ("in_out", "neuron_merging"), FOLD, LEAST_SQUARES)
    spreads = {}
    for share in (0.25, 0.05):
        means = [_mean(pick(rows, method, share=share, epochs=1)) for method in methods]
        spreads[share] = max(means) - min(means)
    told = ", ".join(f"{spread:.1f} at {100 * share:.0f} %" for share, spread in spreads.items())
    return f"largest difference {told}", spreads[0.25] < 2 and spreads[0.05] > 10


def _h5(rows: Rows) -> tuple[str, bool]:
    told, good = [], []
    for run in runs(rows):
        ours = pick(of_run(rows, run), LEAST_SQUARES, share=0.5)
        channel = pick(of_run(rows, run), ("greedy", "least_squares_channel"), share=0.5)
        if ours and channel:
            gain = _mean(ours) - _mean(channel)
            told.append(f"{ours[0]['model']} {gain:+.1f}")
            good.append(gain >= 5)
    if not told:
        raise ValueError
    return "; ".join(told), all(good)


def _h6(rows: Rows) -> tuple[str, bool]:
    losses = {
        (level, share): _loss(pick(rows, FOLD, share=share, level=level))
        for level in levels(rows)
        for share in (0.75, 0.5)
    }
    worst = max(losses, key=lambda key: losses[key])
    return (
        f"points lost at 50 %: {', '.join(f'level {lv} {loss:.1f}' for (lv, s), loss in losses.items() if s == 0.5)}; "
        f"worst {losses[worst]:.1f}",
        losses[worst] <= 1,
    )


HYPOTHESES: dict[str, tuple[str, Callable[[Rows], tuple[str, bool]]]] = {
    "H1": (
        "least squares gains more than any selection without it, and selection still matters under it: "
        "greedy > l1 > random (25 % of units)",
        _h1,
    ),
    "H2": (
        "at 25 % and below, widths by error curves gain a plain removal at least half of what least squares gains it",
        _h2,
    ),
    "H3": ("sparser sources do not fuse better: at 25 % none loses half a point less than the dense one", _h3),
    "H4": ("after one epoch methods differ by under 2 points at 25 % and by over 10 at 5 %", _h4),
    "H5": ("on convolutions least squares per consumer beats least squares per channel by 5 points at 50 %", _h5),
    "H6": ("folding, which sees no data, loses at most 1 point at 50 % and above", _h6),
}
"""Written down before the study ran; from measurements on one seed of another program (docs/fusion.md)."""
