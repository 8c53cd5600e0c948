"""Which network a federation trains: of a run, the newest ticket, or one that is found first."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ticketlab.errors import RunError, Stop, TicketlabError
from ticketlab.recipe import FEW_CLIENTS, FederateSection, Recipe
from ticketlab.recipe_file import RecipeFile, parse_recipe, read_recipe
from ticketlab.runs.store import Level, RunStore
from ticketlab.workflows.enroll import expected
from ticketlab.workflows.federation.request import Asked
from ticketlab.workflows.federation.rounds import Event, check_flower, federate_ticket
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import newest, shipment

LOCAL, ENROLLED = 120.0, 900.0
"""Seconds in which local processes, or people with devices, should have come online."""
DEFAULT = Path("recipes/federate_lenet_mnist.yaml")


@dataclass(frozen=True)
class Wanted:
    """What the user said."""

    run: str | None = None
    """Run or recipe."""
    level: int | None = None
    clients: tuple[str, ...] = ("pi1", "pi2")
    simulate: int | None = None
    settings: Mapping[str, Any] | None = None
    """Fields of `federate:` that have options of their own; None is not said."""
    overrides: tuple[str, ...] = ()
    min_clients: int = 1
    round_timeout: float = 600.0
    join_timeout: float | None = None
    """Seconds to wait for clients before the first round; left out, long where people must go to a device."""
    controls: bool = False
    host: str | None = None
    """Address that enrolled clients are listened for on."""


def federate_run(wanted: Wanted, machine: Machine, should_stop: Stop = lambda: False) -> Iterator[Event]:
    """Find the network, pruning first where there is none, and train it across clients."""
    check_flower(wanted.simulate is not None)
    said = [f"federate.{name}={value}" for name, value in (wanted.settings or {}).items() if value is not None]
    overrides = [*said, *wanted.overrides]
    if wanted.run is not None and Path(wanted.run).suffix in (".yaml", ".yml"):
        file = read_recipe(Path(wanted.run), overrides)
        _asked(wanted, file.recipe.federate, machine.runs)
        store = yield from _found_first(file, machine, should_stop)
        settings = file.recipe.federate
    else:
        found = yield from _store(wanted, machine, overrides, should_stop)
        store, settings = found, _settings(found, overrides)
    asked = _asked(wanted, settings, machine.runs)
    level = 0 if asked.starts_dense and wanted.level is None and store.kind == "prune" else wanted.level
    given = shipment(store, machine.places, level)
    own_file = given.network.facts["model"]["file"]
    if own_file:
        raise TicketlabError(
            f"{given.network.name}: its model stands in {own_file}, which clients do not have; they run what is "
            "installed on them and nothing else"
        )
    yield Notice(f"{given.network.name}: density {100 * given.network.facts['density']:.2f} %, {asked.start} weights")
    privacy = asked.settings.privacy
    if privacy is not None and privacy.kind != "local" and len(asked.clients) <= FEW_CLIENTS:
        yield Notice(
            f"privacy: with {len(asked.clients)} clients the noise of the mean is large enough to destroy the network"
        )
    yield from federate_ticket(given, asked, machine, should_stop, wanted.controls, wanted.host)


def _store(
    wanted: Wanted, machine: Machine, overrides: list[str], should_stop: Stop
) -> Generator[Event, None, RunStore]:
    """The run of that name or the newest ticket; where there is none, one is found with the default recipe."""
    try:
        # a level is a pruning run's: of several runs that a prefix fits, that one is meant
        return newest(machine.runs, wanted.run, wanted.level or 0)
    except RunError:
        if wanted.run is not None or wanted.level is not None or not DEFAULT.is_file():
            raise
        file = read_recipe(DEFAULT, overrides)
        _asked(wanted, file.recipe.federate, machine.runs)
        yield Notice(f"no ticket in {machine.runs} yet: one is found first with {DEFAULT}")
        return (yield from _found_first(file, machine, should_stop))


def _found_first(file: RecipeFile, machine: Machine, should_stop: Stop) -> Generator[Event, None, RunStore]:
    """Prune as the recipe says, telling each level; returns the run."""
    store: RunStore | None = None
    for event in prune_run(file, machine, should_stop):
        if isinstance(event, Started):
            store = event.store
        elif isinstance(event, Level):
            told = f"density {100 * event.density:.2f} %, test {100 * event.test_accuracy:.2f} %"
            yield Notice(f"replicate {event.replicate} level {event.level}: {told}")
        elif isinstance(event, Notice):
            yield event
    assert store is not None
    return store


def _settings(store: RunStore, overrides: list[str]) -> FederateSection:
    """What the run's recipe says about federations, changed by the overrides."""
    foreign = [one for one in overrides if not one.startswith("federate.")]
    if foreign:
        raise TicketlabError(f"--set {foreign[0]}: the run is trained already; of a run only federate.… can be set")
    path = store.path / "recipe.yaml"
    recipe = read_recipe(path).recipe if path.is_file() else None
    return parse_recipe(path, _tree(recipe), overrides, "--set").recipe.federate


def _tree(recipe: Recipe | None) -> dict[str, Any]:
    """The least that makes a recipe, with what is said about federations."""
    named: dict[str, Any] = {"model": {"name": "-"}, "data": {"name": "-"}, "train": {"steps": "1ep"}}
    section = recipe.federate.model_dump(mode="json", exclude_defaults=True) if recipe else {}
    return {**named, "federate": section}


def _asked(wanted: Wanted, settings: FederateSection, runs: Path) -> Asked:
    """What was asked for; raises TicketlabError for what cannot be run, and for clients that may not come in."""
    clients = wanted.clients
    if wanted.simulate:
        clients = tuple(f"client_{number:04d}" for number in range(1, wanted.simulate + 1))
    is_simulated = wanted.simulate is not None
    asked = Asked(clients, settings, wanted.min_clients, wanted.round_timeout, LOCAL, is_simulated)
    asked.check()  # names too, before files are looked for under them
    are_outside = not is_simulated and expected(runs, clients)
    return replace(asked, join_timeout=wanted.join_timeout or (ENROLLED if are_outside else LOCAL))
