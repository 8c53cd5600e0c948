"""Runs side by side: accuracy against density, training operations and seconds; paired differences and verdicts.

Operations and seconds are of all training that a network took, the search for its ticket included.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ticketlab.draws import draws
from ticketlab.errors import RunError
from ticketlab.recipe import Recipe
from ticketlab.recipe_file import read_recipe
from ticketlab.registry import did_you_mean
from ticketlab.report import Estimate, estimate, run_levels
from ticketlab.runs.store import Level, RunStore

SAME = 0.02
"""Densities that differ by less than this share of themselves count as one."""
NO_METHOD = ("data.name", "data.offline", "pruning.levels", "pruning.output_rate", "replicates", "schedule.every",
             "schedule.first", "seed", "watch")  # fmt: skip
"""Fields that do not make another method: what is asked of it, not how it works."""


@dataclass(frozen=True)
class Network:
    """One trained network: a replicate at one density, with all that it cost."""

    run: str
    data: str
    """Data set and model."""
    settings: dict[str, Any]
    """Fields of the recipe that say which method it is."""
    changed: int
    """Number of fields that are not at their defaults."""
    density: float
    seed: int
    test_accuracy: float
    effective_density: float | None
    flops: float | None
    """Executed in all training."""
    remaining_flops: float | None
    seconds: float


@dataclass(frozen=True)
class Point:
    """A method at one density, over replicates."""

    data: str
    method: str
    density: float
    test_accuracy: Estimate
    effective_density: float | None
    """Mean, as those below."""
    flops: float | None
    remaining_flops: float | None
    seconds: float
    minus_baseline: Estimate | None
    """Paired by seed; None where the baseline has no network of this density."""
    flops_ratio: float | None
    """Against the baseline's."""
    seconds_ratio: float | None

    @property
    def verdict(self) -> str:
        """ahead, behind or level, where the interval says so; else why it says nothing."""
        minus = self.minus_baseline
        if minus is None:
            return "no baseline"
        if minus.low is None or minus.high is None:
            return "one seed"
        return "ahead" if minus.low > 0 else "behind" if minus.high < 0 else "level"


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
        """From dense to sparse."""
        return sorted({point.density for point in self.points}, reverse=True)

    def at(self, method: str, density: float) -> Point | None:
        """One point, if it was measured."""
        return next((p for p in self.points if p.method == method and p.density == density), None)


def compare(stores: Sequence[RunStore], against: str | None = None) -> list[Comparison]:
    """Every network of the runs, by data and model; `against` begins the baseline's name or run: else plain magnitude.

    Raises RunError for a baseline that no run is.
    """
    networks = [network for store in stores for network in run_networks(store)]
    if not networks:
        raise RunError("none of these runs has finished a network that could be compared")
    found = [
        _comparison(data, [network for network in networks if network.data == data], against)
        for data in dict.fromkeys(network.data for network in networks)
    ]
    known = {name for one in found for name in one.methods()}
    if against is not None and not any(one.is_named for one in found):
        raise RunError(f"no method or run '{against}' among these{did_you_mean(against, known)}")
    return found


# --- networks of a run


def run_networks(store: RunStore) -> list[Network]:
    """Networks of a finished run that can stand beside others, each with the cost of all training behind it.

    Of a network that is pruned in training that is the last level; of an early-bird run the tickets.
    """
    recipe = read_recipe(store.path / "recipe.yaml").recipe
    manifest = store.read_manifest()
    data = f"{manifest['data']}{' (STAND-IN)' if manifest.get('stand_in_for') else ''}, {recipe.model.name}"
    settings = _flat(recipe.model_dump(mode="json"))
    changed = len(_flat(recipe.model_dump(mode="json", exclude_defaults=True)))
    costs = _costs(store, recipe)
    return [
        Network(
            store.name,
            data,
            settings,
            changed,
            level.density,
            level.seed,
            level.test_accuracy,
            level.effective_density,
            *cost,
        )
        for level, cost in costs
    ]


Cost = tuple[float | None, float | None, float]


def _costs(store: RunStore, recipe: Recipe) -> list[tuple[Level, Cost]]:
    """Levels that count as networks, each with operations executed, with remaining weights, and seconds."""
    levels = run_levels(store)
    if recipe.method == "early_bird":
        known = {(level.replicate, level.level): level for level in levels}
        found = [draw for draw in draws(store, levels) if draw.test_accuracy is not None]
        return [(known[d.replicate, d.level], (d.executed.total, d.remaining.total, d.seconds.total)) for d in found]
    costs: list[tuple[Level, Cost]] = []
    for level in levels:
        if recipe.prunes_in_training and level.level < recipe.pruning.levels:
            continue  # on the way to the network
        behind = [
            other
            for other in levels
            if other.replicate == level.replicate
            and (other.level in (0, level.level) if recipe.method == "oneshot" else other.level <= level.level)
        ]
        costs.append((level, (_sum(o.flops for o in behind), _sum(o.remaining_flops for o in behind),
                              sum(o.seconds for o in behind))))  # fmt: skip
    return costs


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


# --- names of methods


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted fields of a recipe that make the method."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return {name: value for name, value in found.items() if name not in NO_METHOD}


def common_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each field that is not the same everywhere, the most frequent value."""
    fields = dict.fromkeys(name for one in settings for name in one)
    values = {name: Counter(json.dumps(one.get(name)) for one in settings) for name in fields}
    return {name: json.loads(found.most_common(1)[0][0]) for name, found in values.items() if len(found) > 1}


def method_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each: method, criterion, and what differs from the common settings."""
    common = common_settings(settings)
    return [" ".join([one["method"], one["pruning.criterion"], *_unusual(one, common)]) for one in settings]


def _unusual(one: Mapping[str, Any], common: Mapping[str, Any]) -> list[str]:
    return [
        f"{name.rpartition('.')[2]}={_short(one[name])}"
        for name, usual in common.items()
        if name not in ("method", "pruning.criterion") and name in one and one[name] != usual
    ]


def _short(value: Any) -> str:
    return "none" if value is None else "yes" if value is True else "no" if value is False else str(value)


# --- points


def _comparison(data: str, networks: Sequence[Network], against: str | None) -> Comparison:
    settings = [network.settings for network in networks]
    named = list(zip(method_names(settings), networks, strict=True))
    names = list(dict.fromkeys(name for name, _ in named))
    densities = _grouped(network.density for network in networks)
    cells: dict[tuple[str, float], dict[int, Network]] = {}
    for name, network in named:
        cells.setdefault((name, densities[network.density]), {})[network.seed] = network
    asked = [
        name for name, n in named if against is not None and (name.startswith(against) or n.run.startswith(against))
    ]
    baseline = asked[0] if asked else _usual_baseline(named, cells)
    points = [
        _point(data, name, density, cell, cells.get((baseline, density))) for (name, density), cell in cells.items()
    ]
    points.sort(key=lambda point: (names.index(point.method), -point.density))
    return Comparison(data, baseline, points, common_settings(settings), bool(asked))


def _usual_baseline(named: Sequence[tuple[str, Network]], cells: Collection[tuple[str, float]]) -> str:
    """Plain magnitude: what most points of other methods can be held against, then what has the fewest settings.

    The first method where nothing is by magnitude.
    """
    densities: dict[str, set[float]] = {}
    for name, density in cells:
        densities.setdefault(name, set()).add(density)
    plain = {name: network.changed for name, network in named if network.settings["pruning.criterion"] == "magnitude"}

    def rank(name: str) -> tuple[int, int]:
        return -sum(density in densities[name] for other, density in cells if other != name), plain[name]

    return min(plain, key=rank) if plain else named[0][0]


def _grouped(densities: Iterable[float]) -> dict[float, float]:
    """Density → the largest of those that count as one with it."""
    found: dict[float, float] = {}
    for density in sorted(set(densities), reverse=True):
        last = list(found.values())[-1:]
        found[density] = last[0] if last and last[0] - density <= SAME * last[0] else density
    return found


def _point(
    data: str, method: str, density: float, cell: Mapping[int, Network], base: Mapping[int, Network] | None
) -> Point:
    networks = list(cell.values())
    paired = sorted(set(cell) & set(base)) if base else []
    minus = [cell[seed].test_accuracy - base[seed].test_accuracy for seed in paired] if base else []
    flops, seconds = _mean(n.flops for n in networks), fmean(n.seconds for n in networks)
    base_flops = _mean(n.flops for n in base.values()) if base else None
    return Point(
        data=data,
        method=method,
        density=density,
        test_accuracy=estimate([n.test_accuracy for n in networks]),
        effective_density=_mean(n.effective_density for n in networks),
        flops=flops,
        remaining_flops=_mean(n.remaining_flops for n in networks),
        seconds=seconds,
        minus_baseline=estimate(minus) if minus else None,
        flops_ratio=flops / base_flops if flops and base_flops else None,
        seconds_ratio=seconds / fmean(n.seconds for n in base.values()) if base else None,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else fmean(value for value in known if value is not None)


def verdicts(comparison: Comparison) -> list[str]:
    """For each method one sentence: where it is ahead of the baseline, level with it or behind, and at what cost."""
    return [_sentence(comparison, method) for method in comparison.methods()[1:]]


def _sentence(comparison: Comparison, method: str) -> str:
    points = [p for density in comparison.densities() if (p := comparison.at(method, density))]
    places = {
        verdict: ", ".join(f"{100 * p.density:.3g} %" for p in points if p.verdict == verdict)
        for verdict in ("ahead", "level", "behind", "one seed", "no baseline")
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
