"""Train a ticket across clients on Flower: SuperLink on loopback, a gate before it, a SuperNode for each client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from ticketlab import federate
from ticketlab.data.partition import partitions
from ticketlab.errors import FailedRun, Interrupted, Stop, TicketlabError
from ticketlab.federate.processes import TESTED, Child, flwr, was_tested
from ticketlab.runs.results import FEDERATED, REQUEST
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import FederationEvents
from ticketlab.workflows.federation.controls import controls_of
from ticketlab.workflows.federation.flower import LAB, Entrance, entrance_of, running
from ticketlab.workflows.federation.record import record_of, write_network
from ticketlab.workflows.federation.request import Asked, request_hash, request_of
from ticketlab.workflows.federation.server import FAILURE, LIVE, make_rule, round_name
from ticketlab.workflows.federation.simulation import check_ray, simulation
from ticketlab.workflows.federation.start import starting
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Machine, outcome
from ticketlab.workflows.ship import Shipment

APP = Path(federate.__path__[0]) / "app"
POLL = 0.2
SILENCE = 30.0
"""Seconds without a word from the rounds, after which Flower is asked whether they still go on."""

Event = Notice | dict[str, Any]


def federate_ticket(
    given: Shipment,
    asked: Asked,
    machine: Machine,
    should_stop: Stop = lambda: False,
    with_controls: bool = False,
    host: str | None = None,
) -> Iterator[Event]:
    """Train across clients; yields notices, how clients stand, each finished round, and at the end the whole record.

    Clients that are enrolled are waited for, the others run here. Finished rounds are read, not repeated. Raises
    Interrupted when asked to stop, FailedRun where the rounds cannot go on.
    """
    asked.check()
    check_flower(asked.simulated)
    request, settings = request_of(given, asked, machine), asked.settings
    begin = starting(given, asked.start, machine.places)
    make_rule(begin, settings, asked.clients)
    make = partitions.find(settings.partition)
    make(given.splits.of_clients, len(asked.clients), settings.seed, **settings.partition_options)
    entrance = entrance_of(machine.runs, asked.clients, host)
    store = RunStore(machine.runs / f"{given.store.name}-federated-{request_hash(request)}")
    done = next(number for number in count(1) if not store.has_result(round_name(number))) - 1
    if done > settings.rounds:
        yield Notice(
            f"{store.name}: {done} rounds are here already, which is more than {settings.rounds}; none is lost"
        )
        settings = settings.model_copy(update={"rounds": done})
        request["settings"]["rounds"] = done
    if done < settings.rounds:
        entrance.check()
    with store.lock():
        _open(store, given, request)
        store.forget(FAILURE)
        store.forget(LIVE)
        with outcome(store), FederationEvents(store.path) as events:
            for record in _rounds(store, request, done, entrance, should_stop):
                if isinstance(record, dict) and "round" in record:
                    events.round(record)
                yield record
            write_network(store, settings.rounds, begin)
            controls: list[dict[str, Any]] = []
            for event in controls_of(store, given, request, machine.places, should_stop) if with_controls else ():
                if isinstance(event, Notice):
                    yield event
                else:
                    controls.append(event)
            accuracy = given.test_accuracy if asked.start == "trained" else None
            record = record_of(store, begin, accuracy, request, controls)
            store.write_result(FEDERATED, record)
        yield record


def check_flower(simulated: bool = False) -> None:
    """Raise TicketlabError for a version of Flower that was not tested.

    Where clients are to be simulated, also where Flower's simulation engine is not installed.
    """
    found = version("flwr")
    if not was_tested(found):
        wanted = " and ".join(".".join(map(str, each)) for each in TESTED)
        raise TicketlabError(f"flwr {found} was not tested; install one between {wanted}: pip install 'flwr==1.41.*'")
    if simulated:
        check_ray()


@dataclass(frozen=True)
class Engine:
    """What runs the rounds and the clients."""

    vital: Sequence[Child]
    """Programs without which no round can go on."""
    status: Callable[[], str]
    """How it says that the rounds stand."""


def _rounds(
    store: RunStore,
    request: Mapping[str, Any],
    done: int,
    entrance: Entrance,
    should_stop: Stop,
) -> Iterator[Event]:
    """Read the rounds that were done before; for more of them start everything, follow them, stop everything."""
    numbers = range(1, request["settings"]["rounds"] + 1)
    for number in numbers[:done]:
        yield store.read_result(round_name(number))
    if done == len(numbers):
        return
    yield from _who(store, request, entrance)
    with _simulated(store, request) if request["simulated"] else _deployed(store, request, entrance) as engine:
        watch = Watch(store, engine.status)
        for number in numbers[done:]:
            while not store.has_result(round_name(number)):
                if should_stop():
                    raise Interrupted("stopped; the same command goes on with the next round")
                _check(store, engine.vital)
                yield from watch.look(round_name(number))
                time.sleep(POLL)
            yield from watch.look(round_name(number))  # the last answers and the round may come at once
            yield store.read_result(round_name(number))


def _who(store: RunStore, request: Mapping[str, Any], entrance: Entrance) -> Iterator[Notice]:
    """Which clients run here, and for whom is waited, with the line that brings them."""
    if request["simulated"]:
        yield Notice(f"{store.name}: {len(request['clients'])} clients are simulated here")
        return
    local = [name for name in request["clients"] if name not in entrance.expected]
    if local:
        yield Notice(f"{store.name}: not enrolled, so local processes here: {', '.join(local)}")
    until = f"{datetime.now() + timedelta(seconds=request['join_timeout']):%H:%M}"
    for name in entrance.expected:
        yield Notice(f"waiting for {name} until {until}; on it run: ticketlab client join {name}.join --data DIR")


@contextmanager
def _deployed(store: RunStore, request: Mapping[str, Any], entrance: Entrance) -> Iterator[Engine]:
    """Clients that are programs of their own, and a run that they work on."""
    with running(store, request["clients"], request["data"], entrance) as (home, vital):
        answer = flwr(home, "run", str(APP), LAB, "--run-config", f'folder="{store.path.resolve()}"')
        run = str(answer["run-id"])
        try:
            yield Engine(vital, lambda: _status(home, run))
        except BaseException:
            with suppress(FailedRun):  # a SuperLink that is gone cannot be told; why it went is what counts
                flwr(home, "stop", run, LAB)
            raise


@contextmanager
def _simulated(store: RunStore, request: Mapping[str, Any]) -> Iterator[Engine]:
    """Clients of Flower's simulation engine."""
    with simulation(store, request) as child:
        yield Engine([child], lambda: "running" if child.process.poll() is None else "finished")


class Watch:
    """How the clients stand, as the rounds' program tells it; notices when it has gone without a word."""

    def __init__(self, store: RunStore, status: Callable[[], str]) -> None:
        self.store, self.status = store, status
        self.seen: dict[str, Any] = {}
        self.heard = time.monotonic()

    def look(self, wanted: str) -> Iterator[dict[str, Any]]:
        """What is new; raises FailedRun where nothing is, for long, and the run has ended without this result."""
        found = self.store.read_result(LIVE) if self.store.has_result(LIVE) else {}
        if found != self.seen:
            self.seen, self.heard = found, time.monotonic()
            yield {"live": found}
        elif time.monotonic() - self.heard > SILENCE:
            self.heard = time.monotonic()
            status = self.status()
            if status.startswith("finished") and not self.store.has_result(wanted):
                raise FailedRun(
                    f"the rounds ended without a word (Flower says {status}): killed, or memory or disk ran out"
                )


def _status(home: Path, run: str) -> str:
    """How Flower says a run stands."""
    answer = flwr(home, "ls", LAB, "--run-id", run)
    return str(answer["runs"][0]["status"])


def _check(store: RunStore, vital: Sequence[Child]) -> None:
    """Raise FailedRun where the rounds will not go on."""
    if store.has_result(FAILURE):
        raise FailedRun(store.read_result(FAILURE)["error"].removeprefix("FailedRun: "))
    for child in vital:
        child.check()


def _open(store: RunStore, given: Shipment, request: Mapping[str, Any]) -> None:
    facts = {
        "kind": "federate",
        "recipe": given.network.facts["recipe"],
        "method": f"federate {request['settings']['rule']}",
        "data": given.network.facts["data"],
        "stand_in_for": given.store.read_manifest().get("stand_in_for"),
        "source": given.network.facts["source"],
    }
    store.begin(facts)
    store.write_result(REQUEST, request)
