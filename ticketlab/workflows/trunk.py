"""Trainings that branch off a finished run and are kept inside it: controls, copies, learned masks.

lenet_mnist-3f9a1c/controls/level_7/reinit/replicate_1/level_7/    a branch's store is laid out like a run
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ticketlab.data.batches import Examples, permutation
from ticketlab.data.files import Places
from ticketlab.errors import RunError, Stop
from ticketlab.recipe_file import RecipeFile, read_recipe
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Event, Machine, death_notice, plan_on, prune_run, told
from ticketlab.workflows.train_level import Settings
from ticketlab.workflows.workers import Died, run_jobs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN_SAMPLE = 10_000
"""Training examples, at most, that networks beside a run are looked at with."""


@dataclass(frozen=True)
class Branch:
    """One training beside a replicate of a run."""

    folder: str
    """In the run, such as `controls/level_7/reinit`."""
    replicate: int
    level: int
    """Of the run, whose ticket the branch is about."""
    title: str = ""
    """What it is called; left out, as its folder."""

    @property
    def name(self) -> str:
        """What the user is told of it."""
        return f"{self.title or Path(self.folder).name}, replicate {self.replicate}"


@dataclass(frozen=True)
class Branched:
    """What a branch lets be seen of itself."""

    branch: Branch
    seen: object


Train = Callable[[Plan, RunStore, Branch, Settings], Iterator[object]]
"""(plan of the run, the run, which branch, how) → what is seen; a function of a module, for it goes to processes."""


def run_file(store: RunStore, overrides: Sequence[str] = ()) -> RecipeFile:
    """The recipe that a run was made by; raises RunError for a run of another command."""
    if store.kind != "prune":
        raise RunError(f"{store.path}: was made by ticketlab {store.kind}; name a run of ticketlab prune")
    manifest = store.read_manifest()
    file = read_recipe(store.path / "recipe.yaml", overrides)
    # files of the user's own stand beside the recipe that the run was made from
    folder = Path(manifest.get("folder", store.path))
    return replace(file, path=folder / f"{manifest['recipe']}.yaml", stand_in_for=manifest.get("stand_in_for"))


def run_plan(store: RunStore, places: Places, overrides: Sequence[str] = ()) -> Plan:
    """The plan that a run was made by."""
    return make_plan(*load_data(run_file(store, overrides), places))


def pruned(plan: Plan, machine: Machine, should_stop: Stop) -> Generator[Event, None, RunStore]:
    """Prune as planned, or take up what is there; a generator that returns the run, at once if it is finished."""
    store = RunStore(machine.runs / plan.name)
    if not _is_finished(plan, store):
        yield from prune_run(plan, machine, should_stop)
    return store


def _is_finished(plan: Plan, store: RunStore) -> bool:
    """Whether a run has every level of every replicate, and these claims."""
    replicates = range(1, plan.recipe.replicates + 1)
    if not all(store.has_level(number, level) for number in replicates for level in range(plan.levels + 1)):
        return False
    return read_recipe(store.path / "recipe.yaml").recipe.claims == plan.recipe.claims


def trunk_run(
    trunk: RunStore | RecipeFile, check: Callable[[Plan], None], machine: Machine, should_stop: Stop
) -> Generator[Event, None, RunStore]:
    """The run in question; a recipe is run first, if `check` has nothing against its plan."""
    if isinstance(trunk, RunStore):
        return trunk
    plan = plan_on(trunk, machine)
    check(plan)
    return (yield from pruned(plan, machine, should_stop))


def check_levels(plan: Plan, levels: Iterable[int], first: int) -> None:
    """Raise RunError for levels that a recipe's runs do not have, or that lie before the first in question."""
    if wrong := [level for level in levels if not first <= level <= plan.levels]:
        has = f"has levels {first} to {plan.levels}" if plan.levels else "has the dense level 0 alone"
        raise RunError(f"{plan.name}: {has}, not {wrong[0]}")


def train_sample(plan: Plan) -> Examples:
    """Training examples for errors on a line and for batch norms: the same for every network of a recipe."""
    train = plan.splits.train
    order = permutation(len(train), derive_seed(plan.recipe.data.split_seed, "stability"))
    return train.some(order[:TRAIN_SAMPLE].sort().values)


def data_facts(store: RunStore) -> dict[str, Any]:
    """For records: the data that a run was made on, and which it stands in for, if any."""
    manifest = store.read_manifest()
    return {"data": manifest.get("data"), "stand_in_for": manifest.get("stand_in_for")}


def write_figures(store: RunStore, folder: str, figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Figures as files in a run's folder; returns them as PNG, for TensorBoard."""
    from ticketlab.figures import encode

    encoded = {name: encode(figure) for name, figure in figures.items()}
    for name, kinds in encoded.items():
        for kind, content in kinds.items():
            store.write_file(f"{folder}/{name}.{kind}", content)
    return {name: kinds["png"] for name, kinds in encoded.items()}


def finished_replicates(store: RunStore, level: int) -> list[int]:
    """Replicates that have a level; raises RunError where none has."""
    found = [replicate for replicate in store.replicates() if len(store.levels(replicate)) > level]
    if not found:
        deepest = max((len(store.levels(replicate)) for replicate in store.replicates()), default=0) - 1
        has = f"has levels 0 to {deepest}" if deepest >= 0 else "has no finished level yet"
        raise RunError(f"{store.path}: {has}, not {level}")
    return found


def run_branches(
    store: RunStore,
    branches: Sequence[Branch],
    train: Train,
    machine: Machine,
    should_stop: Stop,
) -> Iterator[Branched | Notice]:
    """Train branches of a run that its caller has locked, dealt out to processes; `train` skips finished ones."""
    if not branches:
        return
    device = machine.chosen_device()
    workers = machine.workers_for(len(branches), device)
    hands = [list(branches[first::workers]) for first in range(workers)]
    jobs = {number: f"{hand[0].name} and {len(hand) - 1} more" for number, hand in enumerate(hands)}
    body = partial(_work_through, train, hands, machine, store.path, str(device))
    for event in run_jobs(body, jobs, workers, should_stop, machine.engine, store.witness):
        if isinstance(event, Died):
            yield death_notice(event)
        elif isinstance(event, Branched):
            yield event


def _work_through(
    train: Train,
    hands: Sequence[Sequence[Branch]],
    machine: Machine,
    run: Path,
    device: str,
    number: int,
    should_stop: Stop,
) -> Iterator[Branched]:
    """Some branches one after the other, in this process or in one of its own, which reads run and data itself."""
    torch.set_num_threads(machine.threads)
    store = RunStore(run)
    settings = Settings(torch.device(device), machine.checkpoint_seconds, should_stop)
    with told(store):
        plan = run_plan(store, machine.places)
        for branch in hands[number]:
            with store.part(branch.folder).lock_replicate(branch.replicate):
                for seen in train(plan, store, branch, settings):
                    yield Branched(branch, seen)
