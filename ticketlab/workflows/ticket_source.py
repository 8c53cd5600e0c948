"""The ticket of another run that a recipe names: `RUN@level` → the run, checked; what each of its replicates gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ticketlab.draws import draws
from ticketlab.errors import MissingRun, RunError
from ticketlab.pruning.masks import Mask, masked
from ticketlab.recipe import PruningSection, Recipe
from ticketlab.recipe_file import Problem, RecipeFile, read_recipe
from ticketlab.report import sum_known
from ticketlab.runs.find import find_run, is_path_of_run, list_runs, matching
from ticketlab.runs.store import RunStore
from ticketlab.runs.ticket import digest
from ticketlab.trained_networks import cost_behind

KEY = ("ticket",)


@dataclass(frozen=True)
class TicketSource:
    """A level of a finished run, as a source of tickets."""

    store: RunStore
    level: int

    @property
    def name(self) -> str:
        """As recipes write it, with the run's full name."""
        return f"{self.store.name}@{self.level}"

    def dense(self, replicate: int) -> dict[str, Tensor]:
        """The dense network at the step that the ticket was rewound to."""
        return self.store.read_rewind(replicate)

    def mask(self, replicate: int) -> Mask:
        """Of the ticket."""
        ticket = self.store.read_ticket(replicate, self.level)
        assert ticket is not None, "a finished level has its ticket"
        return ticket.mask

    def facts(self, replicate: int) -> dict[str, Any]:
        """Where one replicate's ticket comes from."""
        recipe = source_recipe(self.store)
        return {
            "run": self.store.name,
            "level": self.level,
            "replicate": replicate,
            "data": self.store.read_manifest()["data"],
            "criterion": recipe.pruning.criterion,
            "digest": self.digest(replicate),
            "search": self._search(recipe, replicate),
        }

    def digest(self, replicate: int) -> str:
        """SHA-256 of a ticket's mask and rewound weights."""
        mask = self.mask(replicate)
        places = {f"mask/{name}": kept for name, kept in mask.items()}
        return digest({**masked(self.dense(replicate), mask), **places})

    def _search(self, recipe: Recipe, replicate: int) -> dict[str, float | None]:
        """Operations and seconds of all training that the mask took."""
        levels = self.store.levels(replicate)
        if recipe.method == "early_bird":
            drawn = next(d for d in draws(self.store, levels) if (d.replicate, d.level) == (replicate, self.level))
            found = (drawn.executed.dense, drawn.remaining.dense, drawn.seconds.dense)
            return dict(zip(("flops", "remaining_flops", "seconds"), found, strict=True))
        own = next(level for level in levels if level.level == self.level)
        if recipe.method == "dynamic":  # the mask is what the whole training came to
            return cost_behind(levels, own, recipe)
        behind = cost_behind([level for level in levels if level is not own], own, recipe)
        looked = {"flops": own.looking_flops, "remaining_flops": own.looking_flops, "seconds": own.looking_seconds}
        return {name: sum_known([behind[name], cost]) for name, cost in looked.items()}


def check_ticket(recipe: Recipe) -> list[Problem]:
    """A ticket where the method takes none, none where it needs one, and settings that a transfer would ignore."""
    if recipe.method != "transfer":
        message = f"belongs to method: transfer, not to {recipe.method}"
        return [] if recipe.ticket is None else [(KEY, message)]
    problems: list[Problem] = []
    if recipe.ticket is None:
        message = "transfer needs a ticket of another run: add ticket: RUN@level, such as lenet_mnist@7"
        problems.append((("method",), message))
    elif _parsed(recipe.ticket) is None:
        message = f"write it as RUN@level with a level from 1 on, such as lenet_mnist@7 (got '{recipe.ticket}')"
        problems.append((KEY, message))
    if recipe.pruning != PruningSection():
        problems.append((("pruning",), "the source run has found the ticket; leave this section out"))
    return problems


def _parsed(text: str) -> tuple[str, int] | None:
    run, at, level = text.rpartition("@")
    return (run, int(level)) if at and run and level.isdecimal() and int(level) else None


def find_source(file: RecipeFile, runs: Path) -> tuple[RecipeFile, TicketSource]:
    """The source of a transfer recipe, and the recipe with the source's full name.

    Raises MissingRun where it has not been made yet, RecipeError where it cannot give what the recipe asks for.
    """
    reference = _parsed(file.recipe.ticket or "")
    assert reference is not None, "checked with the recipe"
    name, level = reference
    if not is_path_of_run(name) and not matching(list_runs(runs), name):
        raise MissingRun(str(file.error([(KEY, f"no run '{name}' in {runs}{_way_out(file, name)}")])))
    try:
        source = TicketSource(find_run(runs, name, "prune"), level)
        _check_source(source, file.recipe.replicates)
    except RunError as error:
        raise file.error([(KEY, str(error))]) from error
    return file.with_recipe(file.recipe.model_copy(update={"ticket": source.name})), source


def _way_out(file: RecipeFile, name: str) -> str:
    """The command that makes a missing run: of the recipe in the same folder whose runs have such names."""
    stem = Path(name).name
    for candidate in (stem, stem.rpartition("-")[0]):
        if candidate and (recipe := file.path.parent / f"{candidate}.yaml").is_file():
            return f"; make it with: ticketlab prune {recipe}"
    return "; ticketlab runs ls names those that are there"


def source_recipe(store: RunStore) -> Recipe:
    """The recipe that a run was made by."""
    return read_recipe(store.path / "recipe.yaml").recipe


def check_restarts(recipe: Recipe, name: object) -> None:
    """Raise RunError, which names the run, for a recipe whose levels are not rewound weights trained under one mask."""
    if recipe.method == "dynamic":
        raise RunError(f"{name}: its masks moved while they were trained; no ticket restarts")
    check_masks(recipe, name)


def check_masks(recipe: Recipe, name: object) -> None:
    """Raise RunError, which names the run, for a recipe whose tickets are not masks over rewound weights."""
    if recipe.prunes_in_training:
        raise RunError(f"{name}: method {recipe.method} goes on with its weights; no ticket restarts")
    if recipe.method == "early_bird" and recipe.early_bird.granularity == "channels":
        raise RunError(f"{name}: its tickets are smaller networks, not masks")
    if recipe.pruning.after != "rewind":
        raise RunError(f"{name}: its tickets restart after '{recipe.pruning.after}', not from rewound weights")


def _check_source(source: TicketSource, replicates: int) -> None:
    """Raise RunError for a run that has no such tickets, or too few of them."""
    store, level = source.store, source.level
    if store.kind != "prune":
        raise RunError(f"{store.path}: was made by ticketlab {store.kind}; tickets come from a pruning run")
    recipe = source_recipe(store)
    if recipe.method == "transfer":
        raise RunError(f"{store.path}: its ticket was found by another run; name that one: {recipe.ticket}")
    check_masks(recipe, store.path)
    finished = {number: len(store.levels(number)) for number in store.replicates()}
    have = [number for number, levels in finished.items() if levels > level]
    if not have:
        deepest = max(finished.values(), default=0) - 1
        raise RunError(f"{store.path}: has no finished level {level}; its deepest finished one is {max(deepest, 0)}")
    if not set(range(1, replicates + 1)) <= set(have):
        raise RunError(
            f"{store.path}: {len(have)} of the {replicates} replicates asked for have a finished level {level}; add "
            f"more there with --set replicates={replicates}, or ask for fewer here"
        )
