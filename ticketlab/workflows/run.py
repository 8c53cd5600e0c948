"""A whole run: every replicate of a recipe, its directory, its manifest, how it ended."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ticketlab.data.files import Places
from ticketlab.errors import FailedRun, Interrupted, Stop, TicketlabError
from ticketlab.recipe import Recipe
from ticketlab.recipe_file import RecipeFile, read_recipe, recipe_yaml
from ticketlab.runs.manifest import check_same, environment, now
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.ticket import digest
from ticketlab.seeds import derive_seed
from ticketlab.workflows.early_bird import early_bird_replicate
from ticketlab.workflows.inputs import Load, check_recipe, load_data, user_files
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice, Seen
from ticketlab.workflows.prune import prune_replicate
from ticketlab.workflows.ray_engine import check_ray
from ticketlab.workflows.summary import Summary, common_levels
from ticketlab.workflows.ticket_source import TicketSource, find_source
from ticketlab.workflows.train_level import Settings
from ticketlab.workflows.transfer import transfer_plan, transfer_replicate
from ticketlab.workflows.workers import Died, Engine, run_jobs


@dataclass(frozen=True)
class Machine:
    """What the user said about where and how to run; none of it changes what is asked."""

    runs: Path = Path("runs")
    places: Places = field(default_factory=Places.default)
    device: str = "auto"
    workers: int | None = None
    threads: int = 1
    checkpoint_seconds: float = 15.0
    engine: Engine = field(default_factory=Engine)

    def workers_for(self, jobs: int, device: torch.device) -> int:
        """Jobs at a time: as asked, else one for each core, or one beside a GPU; a Ray cluster knows its cores."""
        if self.engine.name == "ray" and self.engine.address is not None:
            return min(jobs, self.workers or jobs)
        return min(jobs, self.workers or (os.cpu_count() or 1 if device.type == "cpu" else 1))

    def chosen_device(self) -> torch.device:
        """The device as asked; on Ray, the CPU. Raises TicketlabError where device or engine are not to be had."""
        if self.engine.name == "ray":
            check_ray(self.engine.address, self.device)
            return torch.device("cpu")
        if self.engine.address is not None:
            raise TicketlabError("--address belongs to --engine ray")
        return choose_device(self.device)


@dataclass(frozen=True)
class Started:
    """The run is ready; nothing is trained yet."""

    store: RunStore
    plan: Plan
    device: str
    workers: int


Event = Started | Seen

METHODS = {
    "imp": prune_replicate,
    "oneshot": prune_replicate,
    "at_init": prune_replicate,
    "dynamic": prune_replicate,
    "sign_flip": prune_replicate,
    "gradual": prune_replicate,
    "early_bird": early_bird_replicate,
    "transfer": transfer_replicate,
}
"""Method of a recipe → what one replicate does."""


def prune_run(
    asked: RecipeFile | Plan,
    machine: Machine,
    should_stop: Stop = lambda: False,
    budgets: Mapping[str, Any] | None = None,
) -> Iterator[Event]:
    """Find tickets with every replicate of a recipe; yields notices, progress and levels as they are finished.

    What is finished already is read, not computed. Raises Interrupted after saving when asked to stop.

    Args:
        asked: A recipe, or its plan on this machine.
        budgets: For the manifest, where a budget chose the recipe.
    """
    device = machine.chosen_device()
    plan = asked if isinstance(asked, Plan) else plan_on(asked, machine)
    if plan.data.stand_in_for is not None:
        yield Notice(stand_in_notice(plan))
    store = RunStore(machine.runs / plan.name)
    replicates = list(range(1, plan.recipe.replicates + 1))
    workers = machine.workers_for(len(replicates), device)

    with store.lock():
        with told(store):
            facts = run_facts(plan, device, machine.threads) | ({"budgets": budgets} if budgets else {})
            warnings = check_run(store, facts)
            is_done = not budgets and _is_done(store, plan)
            if not is_done:
                begin_run(store, plan.recipe, facts)
        yield from (Notice(text) for text in warnings)
        # of a run that is done already nothing is written, however its reading ends
        kept = told(store) if is_done else outcome(store)
        with kept, nullcontext() if is_done else Summary(store, plan.recipe) as summary:
            yield Started(store, plan, str(device), workers)
            # the plan's recipe names the stand-in where one is used, so that workers use it too
            body = partial(train_replicate, plan.file, machine, store.path, str(device))
            jobs = {replicate: f"replicate {replicate}" for replicate in replicates}
            for event in run_jobs(body, jobs, workers, should_stop, machine.engine, store.witness):
                yield death_notice(event) if isinstance(event, Died) else cast(Event, event)
                if summary and isinstance(event, Level):
                    summary.update()


def _is_done(store: RunStore, plan: Plan) -> bool:
    """Whether nothing is to be trained or written: then a run stays as old as it is."""
    manifest = store.read_manifest()
    is_asked_for = not manifest.get("derived_from") or plan.file.derived_from
    is_whole = common_levels(store, plan.recipe) > plan.levels
    if manifest.get("state") != "finished" or not (is_whole and is_asked_for and store.witness.exists()):
        return False
    kept = read_recipe(store.witness).recipe
    return _grown(plan.recipe, kept) == kept


def plan_on(file: RecipeFile, machine: Machine, load: Load = load_data) -> Plan:
    """The plan of a recipe with the data and, of a transfer, the source run found on this machine."""
    check_recipe(file)
    if file.recipe.method != "transfer":
        return make_plan(*load(file, machine.places))
    file, source = find_source(file, machine.runs)
    return transfer_plan(make_plan(*load(file, machine.places)), source)


def stand_in_notice(plan: Plan) -> str:
    """What the user must know before comparing numbers."""
    return (
        f"STAND-IN DATA: '{plan.data.dataset.name}' instead of '{plan.data.stand_in_for}'; "
        f"its numbers are not comparable with the recipe's. {plan.data.reason}"
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is a GPU, else the CPU."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if present["cuda"] else "cpu")
    if not present.get(name, False):
        have = ", ".join(device for device, here in present.items() if here)
        raise TicketlabError(f"--device {name}: no such device here; there is: {have}")
    return torch.device(name)


def train_replicate(
    file: RecipeFile,
    machine: Machine,
    run: Path,
    device: str,
    replicate: int,
    should_stop: Stop,
) -> Iterator[Seen]:
    """One replicate, in this process or in one of its own, which reads recipe and data itself."""
    torch.set_num_threads(machine.threads)
    store = RunStore(run)
    settings = Settings(torch.device(device), machine.checkpoint_seconds, should_stop)
    with store.lock_replicate(replicate), told(store):
        plan = make_plan(*load_data(file, machine.places))
        yield from METHODS[plan.recipe.method](plan, store, replicate, settings)


def death_notice(death: Died) -> Notice:
    """What the user is told of a process that died."""
    return Notice(f"the process of {death.name} {death.how}; it resumes")


def run_facts(plan: Plan, device: torch.device, threads: int) -> dict[str, Any]:
    """What the manifest says of a run."""
    data = plan.data
    return {
        "recipe": plan.file.path.stem,
        "folder": str(plan.file.path.parent.resolve()),
        "hash": plan.hash,
        "method": plan.recipe.method,
        "data": data.dataset.name,
        "data_checksum": data.dataset.checksum(),
        "data_source": data.dataset.source,
        "stand_in_for": data.stand_in_for,
        "derived_from": plan.file.derived_from,
        "files": user_files(plan.file),
        "device": str(device),
        "threads": threads,
        "init_digest": digest(plan.build(derive_seed(plan.recipe.seed, "init")).state_dict()),
        **(_source_facts(plan.source) if plan.source else {}),
        **environment(),
    }


def check_run(store: RunStore, facts: Mapping[str, Any]) -> list[str]:
    """Raise RunError where a run cannot be taken up with these facts or is damaged; returns warnings."""
    warnings = check_same(store.read_manifest(), facts, store.path)
    store.check()
    return warnings


def begin_run(store: RunStore, recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Write recipe and manifest of a run that starts, or goes on, now."""
    before = store.read_manifest()
    if before and store.witness.exists():  # without it the run goes on all the same: its hash is in the manifest
        recipe = _grown(recipe, read_recipe(store.path / "recipe.yaml").recipe)
    # a run that the user asked for stays one when another command takes it up
    derived = facts["derived_from"] if not before or before.get("derived_from") else None
    seeds = [recipe.seed + index for index in range(recipe.replicates)]
    times = {"created": before.get("created", now()), "updated": now(), "state": "running"}
    budgets = before.get("budgets", {}) | facts.get("budgets", {})
    store.write_recipe(recipe_yaml(recipe))
    own = {"derived_from": derived, **({"budgets": budgets} if budgets else {}), "seeds": seeds}
    store.write_manifest({**facts, **own, **times})


def _grown(recipe: Recipe, kept: Recipe) -> Recipe:
    """A recipe with as many levels and replicates as the run has been asked for before."""
    levels = max(recipe.pruning.levels, kept.pruning.levels)
    pruning = recipe.pruning.model_copy(update={"levels": levels})
    replicates = max(recipe.replicates, kept.replicates)
    return recipe.model_copy(update={"pruning": pruning, "replicates": replicates})


def _source_facts(source: TicketSource) -> dict[str, Any]:
    """Where a transfer's tickets come from; workers read them there."""
    facts = source.facts(1)
    told = {name: facts[name] for name in ("run", "level", "data", "criterion")}
    return {"source": {**told, "path": str(source.store.path.resolve())}, "ticket_digest": facts["digest"]}


@contextmanager
def outcome(store: RunStore) -> Iterator[None]:
    """Record in the manifest how a run went on."""
    state = "failed"
    try:
        with told(store):
            yield
        state = "finished"
    except (Interrupted, GeneratorExit, KeyboardInterrupt):
        state = "interrupted"
        raise
    finally:
        store.set_state(state)


@contextmanager
def told(store: RunStore) -> Iterator[None]:
    """Every failure as one line with a way out; one that nobody foresaw leaves its traceback in the log."""
    try:
        yield
    except TicketlabError:
        raise
    except OSError as error:
        raise FailedRun(_disk_error(error)) from error
    except Exception as error:
        log = store.write_log(traceback.format_exc())
        raise FailedRun(f"{type(error).__name__}: {error} (traceback in {log})") from error


def _disk_error(error: OSError) -> str:
    what = error.filename or "the run directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}: no space left on the disk; free some and run the same command, it resumes"
    return f"{what}: {error.strerror or error}; mend it and run the same command, it resumes"
