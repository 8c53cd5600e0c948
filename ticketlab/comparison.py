"""Runs side by side: accuracy against density, training operations and seconds; paired differences and verdicts.

Operations and seconds are of all training that a network took, the search for its ticket included.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from ticketlab.draws import draws
from ticketlab.errors import RunError
from ticketlab.pruning.criteria import criteria
from ticketlab.recipe import Recipe, dotted
from ticketlab.recipe_file import read_recipe
from ticketlab.registry import did_you_mean, keyword_options
from ticketlab.report import SAME_DENSITY, Estimate, estimate, mean_known, run_levels, sum_known, whole
from ticketlab.runs.store import Level, RunStore

NO_METHOD = ("claims", "data.name", "data.offline", "early_bird.also_at", "early_bird.densities", "pruning.densities",
             "pruning.levels", "replicates", "seed", "variants", "watch")  # fmt: skip
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


# --- networks of a run


def run_networks(store: RunStore) -> list[Network]:
    """Networks of a run that can stand beside others, each with the cost of all training behind it.

    Of a network that is pruned in training that is the last level; of an early-bird run the tickets.
    """
    recipe = read_recipe(store.path / "recipe.yaml").recipe
    manifest = store.read_manifest()
    stand_in = " (STAND-IN)" if manifest.get("stand_in_for") else ""
    changed = len(_of_method(dotted(recipe.model_dump(mode="json", exclude_defaults=True))))
    return [
        Network(
            run=store.name,
            data=f"{manifest['data']}{stand_in}, {recipe.model.name}",
            settings=_settings(recipe) | trained.settings | _found_by(manifest),
            changed=changed,
            density=trained.level.density,
            seed=trained.level.seed,
            test_accuracy=trained.level.test_accuracy,
            effective_density=trained.level.effective_density,
            flops=trained.flops,
            remaining_flops=trained.remaining_flops,
            seconds=trained.seconds,
        )
        for trained in (_early_birds(store) if recipe.method == "early_bird" else _by_level(store, recipe))
    ]


@dataclass(frozen=True)
class _Trained:
    """A level that counts as a network, with the cost of all training behind it."""

    level: Level
    flops: float | None
    remaining_flops: float | None
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    """What else makes the method."""


def _early_birds(store: RunStore) -> list[_Trained]:
    levels = run_levels(store)
    known = {(level.replicate, level.level): level for level in levels}
    return [
        _Trained(
            known[d.replicate, d.level],
            d.executed.total,
            d.remaining.total,
            d.seconds.total,
            {"drawn at": "settled" if d.chosen else f"{d.step}it"},
        )
        for d in draws(store, levels)
        if d.test_accuracy is not None
    ]


def _by_level(store: RunStore, recipe: Recipe) -> list[_Trained]:
    levels, found = run_levels(store), []
    for level in whole(levels, recipe):
        behind = cost_behind([other for other in levels if other.replicate == level.replicate], level, recipe)
        search = _search(store, level, recipe)
        flops, left = (sum_known([search[what], behind[what]]) for what in ("flops", "remaining_flops"))
        found.append(_Trained(level, flops, left, search["seconds"] + (behind["seconds"] or 0.0)))
    return found


def cost_behind(levels: Sequence[Level], level: Level, recipe: Recipe) -> dict[str, float | None]:
    """Operations and seconds of those levels of a replicate that the network of a level took."""
    shares = [(other, share) for other in levels if (share := _share(other, level, recipe))]
    return {
        what: sum_known([_part(getattr(other, what), share) for other, share in shares])
        for what in ("flops", "remaining_flops", "seconds")
    }


def _part(whole: float | None, share: float) -> float | None:
    return None if whole is None else share * whole


def _share(other: Level, level: Level, recipe: Recipe) -> float:
    """Which share of another level's training the network of a level took."""
    if other.level == level.level:
        return 1.0
    if recipe.method == "transfer" or other.level > level.level:
        return 0.0
    if recipe.prunes_at_init:  # level 0 up to the step at which it was pruned
        return 1 - level.steps / other.steps if other.level == 0 else 0.0
    return float(other.level == 0 or recipe.method != "oneshot")


def _search(store: RunStore, level: Level, recipe: Recipe) -> dict[str, Any]:
    """What another run spent on finding a transferred ticket; nothing for all else."""
    if recipe.method != "transfer" or level.level == 0:
        return dict.fromkeys(("flops", "remaining_flops", "seconds"), 0.0)
    ticket = store.read_ticket(level.replicate, level.level)
    assert ticket is not None, "a finished level has its ticket"
    return dict(ticket.facts["source"]["search"])


def _found_by(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The criterion behind a transferred ticket, which its recipe does not name."""
    return {"pruning.criterion": manifest["source"]["criterion"]} if "source" in manifest else {}


# --- names of methods


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What makes the method, with the criterion's own defaults where they are known here."""
    name = recipe.pruning.criterion
    options = keyword_options(criteria.find(name)) if name in criteria else {}
    defaults = {f"pruning.options.{option}": parameter.default for option, parameter in options.items()}
    return defaults | _of_method(dotted(recipe.model_dump(mode="json")))


def _of_method(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe that make the method."""
    return {name: value for name, value in settings.items() if name not in NO_METHOD}


def common_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each field that is not the same wherever it has a meaning, the most frequent value."""
    fields = dict.fromkeys(name for one in settings for name in one)
    values = {name: Counter(json.dumps(one[name]) for one in settings if name in one) for name in fields}
    return {name: json.loads(found.most_common(1)[0][0]) for name, found in values.items() if len(found) > 1}


def _unnamed(settings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are no variant, which has a name of its own."""
    return [one for one in settings if not one.get("variant")]


def method_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each: its variant's, or method and criterion; and what differs from those of such a name."""
    common = {None: common_settings(_unnamed(settings))}
    for variant in {one["variant"] for one in settings if one.get("variant")}:
        common[variant] = common_settings([one for one in settings if one.get("variant") == variant])
    return [" ".join([*_begun(one), *_unusual(one, common[one.get("variant")])]) for one in settings]


def _begun(one: Mapping[str, Any]) -> list[str]:
    return [one["variant"]] if one.get("variant") else [one["method"], one["pruning.criterion"]]


TOLD = {False: ("method", "pruning.criterion", "variant"), True: ("variant",)}
"""What a name begins with, of a method and of a variant."""


def _unusual(one: Mapping[str, Any], common: Mapping[str, Any]) -> list[str]:
    return [
        f"{name.rpartition('.')[2]}={_short(one[name])}"
        for name, usual in common.items()
        if name not in TOLD[bool(one.get("variant"))] and name in one and one[name] != usual
    ]


def said(common: Mapping[str, Any]) -> str:
    """Common settings in words; what names tell anyway, or what is simply left out, is not said."""
    told = {name: value for name, value in common.items() if name not in TOLD[False] and value}
    return ", ".join(f"{name} {_short(value)}" for name, value in told.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else "yes" if value is True else "no" if value is False else str(value)


# --- points


def _comparison(data: str, networks: Sequence[Network], against: str | None) -> Comparison:
    settings = [network.settings for network in networks]
    named = list(zip(method_names(settings), networks, strict=True))
    names = list(dict.fromkeys(name for name, _ in named))
    cells = _cells(named)
    asked = _asked(named, against)
    baseline = asked or _usual_baseline(named, cells)
    points = [_point(data, name, column, cell, cells.get((baseline, column))) for (name, column), cell in cells.items()]
    points.sort(key=lambda point: (names.index(point.method), -point.column))
    return Comparison(data, baseline, points, common_settings(_unnamed(settings)), bool(asked))


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
        extras = ("train.gradient_noise", "train.sparsify.kind", "pruning.reclaim", "sign_flips.at_once", "ticket")
        shared = sum(density in densities[name] for other, density in cells if other != name)
        return any(settings.get(extra) for extra in extras), -shared, known[name].changed

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
