"""What differs between two runs (recipes, data, versions, machine), and what that did to the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ticketlab.errors import RunError
from ticketlab.listing import line
from ticketlab.recipe import dotted, not_common
from ticketlab.recipe_file import read_recipe
from ticketlab.report import SAME_DENSITY, Estimate, estimate, run_levels, whole
from ticketlab.runs.results import REQUEST
from ticketlab.runs.store import Level, RunStore

DATA = ("data", "stand_in_for", "data_checksum", "data_source")
MACHINE = ("host", "platform", "cpu", "cores", "device", "threads")
RESULTS = ("density", "test_accuracy")


@dataclass(frozen=True)
class Change:
    """A fact that is not the same in both runs; None where a run does not say."""

    field: str
    one: Any
    other: Any


@dataclass(frozen=True)
class Pair:
    """The levels of both runs that have the same density."""

    density: float
    levels: tuple[int, int]
    test_accuracy: tuple[Estimate, Estimate]
    difference: Estimate | None
    """Test accuracy of the other minus that of the one, paired by seed; None without a common seed."""
    early_stop_step: tuple[Estimate, Estimate]
    seconds: tuple[float, float]
    """Of the level's training, mean over replicates."""


@dataclass(frozen=True)
class Difference:
    """Two runs of a kind against each other."""

    one: str
    other: str
    settings: list[Change]
    """Of the recipe, or of what a command was told."""
    data: list[Change]
    versions: list[Change]
    machine: list[Change]
    pairs: list[Pair]
    """Of pruning runs, levels that stand for a network; none of others."""
    results: list[Change]
    """Density and test accuracy that each ended with."""
    seeds: list[int]
    """That both runs have."""
    equal: list[int]
    """Of those, seeds with the same figures at every level that both have."""


def difference(one: RunStore, other: RunStore) -> Difference:
    """What differs; raises RunError for runs of two kinds, or for a run and itself."""
    if one.kind != other.kind:
        raise RunError(f"{one.path} was made by ticketlab {one.kind}, {other.path} by ticketlab {other.kind}")
    if one.path.resolve() == other.path.resolve():
        raise RunError(f"{one.path}: is the same run twice")
    settings = [_settings(store) for store in (one, other)]
    manifests = [store.read_manifest() for store in (one, other)]
    versions = [{**found.get("versions", {}), "commit": found.get("commit")} for found in manifests]
    levels = (run_levels(one), run_levels(other))  # none but of pruning runs
    networks = [
        whole(found, read_recipe(store.witness).recipe) if found else []
        for store, found in zip((one, other), levels, strict=True)
    ]
    seeds = sorted(set.intersection(*({level.seed for level in found} for found in levels)))
    return Difference(
        str(one.path),
        str(other.path),
        _changes(settings[0], settings[1]),
        _changes(*({name: found.get(name) for name in DATA} for found in manifests)),
        _changes(versions[0], versions[1]),
        _changes(*({name: found.get(name) for name in MACHINE} for found in manifests)),
        _pairs(networks[0], networks[1]),
        _changes(*({name: getattr(line(store)[0], name) for name in RESULTS} for store in (one, other))),
        seeds,
        [seed for seed in seeds if _are_equal(*([level for level in found if level.seed == seed] for found in levels))],
    )


def _settings(store: RunStore) -> dict[str, Any]:
    """What was asked for, by dotted names: the recipe, or what a command was told."""
    recipe = read_recipe(store.witness).recipe.model_dump(mode="json") if store.witness.exists() else {}
    manifest = store.read_manifest()
    told = store.read_result(REQUEST) if store.has_result(REQUEST) else manifest.get("request", {})
    return dotted({**recipe, **told, "source": manifest.get("source"), "files": manifest.get("files", {})})


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Change]:
    return [Change(name, one.get(name), other.get(name)) for name in not_common([one, other])]


def _are_equal(one: Sequence[Level], other: Sequence[Level]) -> bool:
    return all(_untimed(first) == _untimed(second) for first, second in zip(one, other, strict=False))


def _untimed(level: Level) -> Level:
    """A level's record without what the clock says, and without its number among replicates."""
    curve = tuple({name: value for name, value in point.items() if name != "step_ms"} for point in level.curve)
    return replace(level, curve=curve, replicate=0, seconds=0.0, step_ms=0.0)


def _pairs(one: Sequence[Level], other: Sequence[Level]) -> list[Pair]:
    """Levels of the same density: each of the one run with the nearest of the other, of several with its own number."""
    densities = [{level.level: level.density for level in found} for found in (one, other)]
    pairs = []
    for level, density in densities[0].items():
        near = {
            index: abs(other_density - density)
            for index, other_density in densities[1].items()
            if abs(other_density - density) <= SAME_DENSITY * density
        }
        if near:
            pairs.append(_pair(one, other, level, min(near, key=lambda index: (near[index], abs(index - level)))))
    return pairs


def _pair(one: Sequence[Level], other: Sequence[Level], level: int, other_level: int) -> Pair:
    first = [found for found in one if found.level == level]
    second = {found.seed: found for found in other if found.level == other_level}
    minus = [second[found.seed].test_accuracy - found.test_accuracy for found in first if found.seed in second]
    return Pair(
        first[0].density,
        (level, other_level),
        (_accuracy(first), _accuracy(list(second.values()))),
        estimate(minus) if minus else None,
        (_early_stop(first), _early_stop(list(second.values()))),
        (_seconds(first), _seconds(list(second.values()))),
    )


def _accuracy(levels: Sequence[Level]) -> Estimate:
    return estimate([level.test_accuracy for level in levels])


def _early_stop(levels: Sequence[Level]) -> Estimate:
    return estimate([float(level.early_stop_step) for level in levels])


def _seconds(levels: Sequence[Level]) -> float:
    return fmean(level.seconds for level in levels)
