"""Networks of finished runs: what method each is of, and what all training behind it cost, the search included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ticketlab.draws import draws
from ticketlab.errors import RunError
from ticketlab.pruning.criteria import criteria
from ticketlab.recipe import Recipe, dotted
from ticketlab.recipe_file import read_recipe
from ticketlab.registry import keyword_options
from ticketlab.report import run_levels, sum_known, whole
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
    """What says which method it is: fields of the recipe, files of the user's own, when an early bird was drawn."""
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


def run_networks(store: RunStore) -> list[Network]:
    """Networks of a run that can stand beside others, each with the cost of all training behind it.

    Of a network that is pruned in training that is the last level; of an early-bird run the tickets.
    """
    recipe = read_recipe(store.path / "recipe.yaml").recipe
    manifest = store.read_manifest()
    stand_in = " (STAND-IN)" if manifest.get("stand_in_for") else ""
    changed = len(_of_method(dotted(recipe.model_dump(mode="json", exclude_defaults=True))))
    settings = _settings(recipe) | _found_by(manifest) | _own_files(manifest)
    return [
        Network(
            run=store.name,
            data=f"{manifest['data']}{stand_in}, {recipe.model.name}",
            settings=settings | trained.settings,
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
    if ticket is None:
        raise RunError(f"{store.path}: level {level.level} of replicate {level.replicate} has lost its ticket")
    return dict(ticket.facts["source"]["search"])


def _found_by(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The criterion behind a transferred ticket, which its recipe does not name."""
    return {"pruning.criterion": manifest["source"]["criterion"]} if "source" in manifest else {}


def _own_files(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Files of the user's own as they were: an edited one makes another method."""
    return {f"files.{name.removesuffix('.py')}": digest[:6] for name, digest in manifest.get("files", {}).items()}


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What makes the method, with the criterion's own defaults where they are known here."""
    name = recipe.pruning.criterion
    options = keyword_options(criteria.find(name)) if name in criteria else {}
    defaults = {f"pruning.options.{option}": parameter.default for option, parameter in options.items()}
    told = _of_method(dotted(recipe.model_dump(mode="json")))
    told["train.sparsify"] = told.pop("train.sparsify.kind", None)
    # of these any key may be left out, which is not to have no meaning
    wholes = {"model.options": recipe.model.options, "pruning.rates": recipe.pruning.rates}
    idle = [section for section, is_used in _used(recipe).items() if not is_used]
    apart = tuple(f"{name}." for name in (*wholes, *idle))
    return defaults | {name: value for name, value in told.items() if not name.startswith(apart)} | wholes


def _used(recipe: Recipe) -> dict[str, bool]:
    """Sections that have a meaning for some methods, and whether they have one here."""
    return {
        "dynamic": recipe.method == "dynamic",
        "schedule": recipe.prunes_in_training,
        "early_bird": recipe.method == "early_bird",
        "federate": False,
    }


def _of_method(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a recipe that make the method."""
    return {name: value for name, value in settings.items() if name not in NO_METHOD}
