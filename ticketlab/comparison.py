"""Runs side by side: accuracy against density, training operations and seconds; paired differences and verdicts.

Operations and seconds are of all training that a network took, the search for its ticket included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ticketlab.errors import RunError
from ticketlab.method_names import common_settings, method_names, unnamed
from ticketlab.registry import did_you_mean
from ticketlab.report import SAME_DENSITY, Estimate, estimate, mean_known
from ticketlab.trained_networks import Network


@dataclass(frozen=True)
class Point:
    """A method at one density, over replicates."""

    data: str
    method: str
    column: float
    """Density that stands for those that count as one with its own, over all methods."""
    density: float
    """Its own; the mean, as those below."""
    test_accuracy: Estimate
    effective_density: float | None
    flops: float | None
    remaining_flops: float | None
    seconds: float
    minus_baseline: Estimate | None
    """Paired by seed; None where the baseline has no network of this density, or none of these seeds."""
    flops_ratio: float | None
    """Against the baseline's."""
    seconds_ratio: float | None

    @property
    def verdict(self) -> str:
        """ahead, behind or level, where the interval says so; else why it says nothing."""
        minus = self.minus_baseline
        if minus is None:
            return "no baseline" if self.seconds_ratio is None else "no common seed"
        if minus.low is None or minus.high is None:
            return "one seed"
        return "ahead" if minus.low > 0 else "behind" if minus.high < 0 else "level"

    @property
    def mark(self) -> str:
        """The verdict as a sign, where it is one."""
        return {"ahead": " ▲", "behind": " ▼"}.get(self.verdict, "")


@dataclass(frozen=True)
class Comparison:
    """Methods on the same data and model, against one of them."""

    data: str
    baseline: str
    points: list[Point]
    common: dict[str, Any]
    """What holds where a method's name does not say otherwise, of the settings that are not the same everywhere."""
    is_named: bool
    """Whether the baseline is the one that was asked for."""

    def methods(self) -> list[str]:
        """Names of the methods, the baseline first."""
        others = dict.fromkeys(point.method for point in self.points if point.method != self.baseline)
        return [self.baseline, *others]

    def densities(self) -> list[float]:
        """Columns, from dense to sparse."""
        return sorted({point.column for point in self.points}, reverse=True)

    def shared_densities(self) -> list[float]:
        """Those that at least half of the methods have; all where there are none."""
        methods, half = Counter(point.column for point in self.points), len(self.methods()) / 2
        return [density for density in self.densities() if methods[density] >= half] or self.densities()

    def at(self, method: str, column: float) -> Point | None:
        """One point, if it was measured."""
        return next((p for p in self.points if p.method == method and p.column == column), None)


def compare(networks: Sequence[Network], against: str | None = None) -> list[Comparison]:
    """The networks by data and model; `against` begins the baseline's name or run: else plain magnitude.

    Raises RunError for a baseline that no run is.
    """
    found = [
        _comparison(data, [network for network in networks if network.data == data], against)
        for data in dict.fromkeys(network.data for network in networks)
    ]
    if against is not None and not any(one.is_named for one in found):
        known = {network.run for network in networks} | {name for one in found for name in one.methods()}
        raise RunError(f"no method or run '{against}' among these{did_you_mean(against, known)}")
    return found


def _comparison(data: str, networks: Sequence[Network], against: str | None) -> Comparison:
    settings = [network.settings for network in networks]
    named = list(zip(method_names(settings), networks, strict=True))
    names = list(dict.fromkeys(name for name, _ in named))
    cells = _cells(named)
    asked = _asked(named, against)
    baseline = asked or _usual_baseline(named, cells)
    points = [_point(data, name, column, cell, cells.get((baseline, column))) for (name, column), cell in cells.items()]
    points.sort(key=lambda point: (names.index(point.method), -point.column))
    return Comparison(data, baseline, points, common_settings(unnamed(settings)), bool(asked))


Cells = dict[tuple[str, float], dict[int, Network]]
"""Method and column → network of each seed."""


def _cells(named: Sequence[tuple[str, Network]]) -> Cells:
    """Raises RunError where two networks would have the same place."""
    densities = _grouped([network for _, network in named])
    cells: Cells = {}
    for name, network in named:
        cell = cells.setdefault((name, densities[network.density]), {})
        if network.seed in cell:
            raise RunError(
                f"{cell[network.seed].run} and {network.run} both have a network of '{name}' with seed {network.seed} "
                f"at density {network.density:.3g}; leave one of them out"
            )
        cell[network.seed] = network
    return cells


def _asked(named: Sequence[tuple[str, Network]], against: str | None) -> str | None:
    """The method that is meant: by its name or run, whole or begun; raises RunError where several fit."""
    if against is None:
        return None
    whole = {name for name, network in named if against in (name, network.run)}
    begun = {name for name, network in named if name.startswith(against) or network.run.startswith(against)}
    found = whole or begun
    if len(found) > 1:
        raise RunError(f"'{against}' fits several methods: {'; '.join(sorted(found))}")
    return next(iter(found), None)


def _usual_baseline(named: Sequence[tuple[str, Network]], cells: Collection[tuple[str, float]]) -> str:
    """Plain magnitude, and of several forms the one that most points of other methods can be held against.

    The first method where nothing is by magnitude.
    """
    densities: dict[str, set[float]] = {}
    for name, density in cells:
        densities.setdefault(name, set()).add(density)
    known = dict(named)
    plain = [name for name, network in known.items() if network.settings["pruning.criterion"] == "magnitude"]

    def rank(name: str) -> tuple[bool, int, int]:
        settings = known[name].settings
        extras = ("train.gradient_noise", "train.sparsify", "pruning.reclaim", "sign_flips.at_once", "ticket")
        shared = sum(density in densities[name] for other, density in cells if other != name)
        is_plain = settings["method"] not in ("at_init", "dynamic") and not any(settings.get(one) for one in extras)
        return not is_plain, -shared, known[name].changed

    return min(plain, key=rank) if plain else named[0][0]


def _grouped(networks: Sequence[Network]) -> dict[float, float]:
    """Density → the one that most networks have of those that count as one with it; two of one run never do."""
    runs: dict[float, set[str]] = {}
    for network in networks:
        runs.setdefault(network.density, set()).add(network.run)
    groups: list[list[float]] = []
    together: set[str] = set()
    for density in sorted(runs, reverse=True):
        if groups and groups[-1][0] - density <= SAME_DENSITY * groups[-1][0] and not together & runs[density]:
            groups[-1].append(density)
            together |= runs[density]
        else:
            groups.append([density])
            together = set(runs[density])
    having = Counter(network.density for network in networks)
    return {density: max(group, key=lambda one: having[one]) for group in groups for density in group}


def _point(
    data: str, method: str, column: float, cell: Mapping[int, Network], base: Mapping[int, Network] | None
) -> Point:
    networks = list(cell.values())
    paired = sorted(set(cell) & set(base)) if base else []
    minus = [cell[seed].test_accuracy - base[seed].test_accuracy for seed in paired] if base else []
    flops, seconds = mean_known([n.flops for n in networks]), fmean(n.seconds for n in networks)
    base_flops = mean_known([n.flops for n in base.values()]) if base else None
    return Point(
        data=data,
        method=method,
        column=column,
        density=fmean(n.density for n in networks),
        test_accuracy=estimate([n.test_accuracy for n in networks]),
        effective_density=mean_known([n.effective_density for n in networks]),
        flops=flops,
        remaining_flops=mean_known([n.remaining_flops for n in networks]),
        seconds=seconds,
        minus_baseline=estimate(minus) if minus else None,
        flops_ratio=flops / base_flops if flops and base_flops else None,
        seconds_ratio=seconds / fmean(n.seconds for n in base.values()) if base else None,
    )


def verdicts(comparison: Comparison) -> list[str]:
    """For each method one sentence: where it is ahead of the baseline, level with it or behind, and at what cost."""
    return [_sentence(comparison, method) for method in comparison.methods()[1:]]


def _sentence(comparison: Comparison, method: str) -> str:
    points = [p for column in comparison.densities() if (p := comparison.at(method, column))]
    places = {
        verdict: ", ".join(f"{100 * p.column:.3g} %" for p in points if p.verdict == verdict)
        for verdict in ("ahead", "level", "behind", "one seed", "no common seed", "no baseline")
    }
    said = [f"{verdict} at {where}" for verdict, where in places.items() if where]
    for what, ratios in (
        ("operations", [p.flops_ratio for p in points]),
        ("seconds", [p.seconds_ratio for p in points]),
    ):
        known = [ratio for ratio in ratios if ratio is not None]
        if known:
            low, high = f"{min(known):.2f}", f"{max(known):.2f}"
            said.append(f"{low if low == high else f'{low}–{high}'} × the {what}")
    return f"{method}: {'; '.join(said)}"


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON."""
    points = [{**asdict(point), "verdict": point.verdict} for point in comparison.points]
    return {
        "data": comparison.data,
        "baseline": comparison.baseline,
        "common": comparison.common,
        "points": points,
        "verdicts": verdicts(comparison),
    }


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat row for each point, for CSV."""
    rows = []
    for point in comparison.points:
        row = {**asdict(point), "verdict": point.verdict}
        for name in ("test_accuracy", "minus_baseline"):
            found = row.pop(name)
            row |= {f"{name}_{key}": found[key] if found else None for key in ("mean", "low", "high", "n")}
        rows.append(row)
    return rows
