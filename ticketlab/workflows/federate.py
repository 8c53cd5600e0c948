"""Train a ticket across clients on Flower: SuperLink on loopback, a gate before it, a SuperNode for each client."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ticketlab import federate
from ticketlab.data.partition import partitions
from ticketlab.errors import FailedRun, Interrupted, TicketlabError
from ticketlab.federate.keys import client_key, make_authority, server_certificate
from ticketlab.federate.processes import Child, flwr, free_port, start, stop, wait_for
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import FederationEvents
from ticketlab.workflows.federate_controls import controls_of
from ticketlab.workflows.federate_record import record_of, write_network
from ticketlab.workflows.federate_request import Asked, request_hash, request_of
from ticketlab.workflows.federate_server import FAILURE, LIVE, REQUEST, make_rule, round_name
from ticketlab.workflows.federate_simulation import check_ray, simulation
from ticketlab.workflows.federate_start import starting
from ticketlab.workflows.run import Machine, outcome
from ticketlab.workflows.ship import FEDERATED, Shipment
from ticketlab.workflows.train_level import Notice

APP = Path(federate.__path__[0]) / "app"
LAB = "lab"
TESTED = ((1, 41), (1, 43))
"""Versions of Flower from the first up to, not including, the second."""
POLL = 0.2
SILENCE = 30.0
"""Seconds without a word from the rounds, after which Flower is asked whether they still go on."""

Event = Notice | dict[str, Any]


def federate_ticket(
    given: Shipment,
    asked: Asked,
    machine: Machine,
    should_stop: Callable[[], bool] = lambda: False,
    with_controls: bool = False,
) -> Iterator[Event]:
    """Train across clients; yields notices, how clients stand, each finished round, and at the end the whole record.

    Finished rounds are read, not repeated. Raises Interrupted when asked to stop, FailedRun where the rounds cannot
    go on.
    """
    asked.check()
    check_flower(asked.simulated)
    request, settings = request_of(given, asked, machine), asked.settings
    begin = starting(given, asked.start, machine.places)
    make_rule(begin, settings, asked.clients)
    make = partitions.find(settings.partition)
    make(given.splits.of_clients, len(asked.clients), settings.seed, **settings.partition_options)
    store = RunStore(machine.runs / f"{given.store.name}-federated-{request_hash(request)}")
    with store.lock():
        _open(store, given, request)
        store.forget(FAILURE)
        store.forget(LIVE)
        missing = [number for number in range(1, settings.rounds + 1) if not store.has_result(round_name(number))]
        with outcome(store), FederationEvents(store.path) as events:
            for record in _followed(store, request, missing, should_stop):
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


def _followed(
    store: RunStore, request: Mapping[str, Any], missing: Sequence[int], should_stop: Callable[[], bool]
) -> Iterator[Event]:
    """Rounds that were finished before, then those that are missing as they are finished."""
    for number in range(1, request["settings"]["rounds"] + 1):
        if number not in missing:
            yield store.read_result(round_name(number))
    if missing:
        yield from _rounds(store, request, missing, should_stop)


def check_flower(simulated: bool = False) -> None:
    """Raise TicketlabError for a version of Flower that was not tested: its transport changes between releases.

    Where clients are to be simulated, also where Flower's simulation engine is not installed.
    """
    found = tuple(int(part) for part in version("flwr").split(".")[:2])
    if not TESTED[0] <= found < TESTED[1]:
        wanted = " and ".join(".".join(map(str, each)) for each in TESTED)
        raise TicketlabError(
            f"flwr {version('flwr')} was not tested; install one between {wanted}: pip install 'flwr==1.41.*'"
        )
    if simulated:
        check_ray()


@dataclass(frozen=True)
class Engine:
    """What runs the rounds and the clients."""

    children: Sequence[Child]
    status: Callable[[], str]
    """How it says that the rounds stand."""


def _rounds(
    store: RunStore, request: Mapping[str, Any], missing: Sequence[int], should_stop: Callable[[], bool]
) -> Iterator[Event]:
    """Start everything, follow the rounds, stop everything."""
    with (_simulated if request["simulated"] else _deployed)(store, request) as engine:
        watch = Watch(store, engine.status)
        for number in missing:
            while not store.has_result(round_name(number)):
                if should_stop():
                    raise Interrupted("stopped; the same command goes on with the next round")
                _check(store, engine.children)
                yield from watch.look()
                time.sleep(POLL)
            yield store.read_result(round_name(number))


@contextmanager
def _deployed(store: RunStore, request: Mapping[str, Any]) -> Iterator[Engine]:
    """Clients that are programs of their own, and a run that they work on."""
    with _flower(store, request["clients"], request["data"]) as (home, children):
        answer = flwr(home, "run", str(APP), LAB, "--run-config", f'folder="{store.path.resolve()}"')
        run = str(answer["run-id"])
        try:
            yield Engine(children, lambda: _status(home, run))
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

    def look(self) -> Iterator[dict[str, Any]]:
        """What is new; raises FailedRun where nothing is, for long, and Flower says that the run has ended."""
        found = self.store.read_result(LIVE) if self.store.has_result(LIVE) else {}
        if found != self.seen:
            self.seen, self.heard = found, time.monotonic()
            yield {"live": found}
        elif time.monotonic() - self.heard > SILENCE:
            self.heard = time.monotonic()
            status = self.status()
            if status.startswith("finished"):
                raise FailedRun(f"the rounds ended without a word (Flower says {status}); is the disk full?")


def _status(home: Path, run: str) -> str:
    """How Flower says a run stands."""
    answer = flwr(home, "ls", LAB, "--run-id", run)
    return str(answer["runs"][0]["status"])


def _check(store: RunStore, children: Sequence[Child]) -> None:
    """Raise FailedRun where the rounds will not go on."""
    if store.has_result(FAILURE):
        raise FailedRun(store.read_result(FAILURE)["error"].removeprefix("FailedRun: "))
    for child in children:
        child.check()


@contextmanager
def _flower(store: RunStore, clients: Sequence[str], data: str | None) -> Iterator[tuple[Path, list[Child]]]:
    """SuperLink, gate and one SuperNode a client, with fresh keys, all on loopback."""
    folder = store.path.resolve() / "flower"
    authority = make_authority()
    pair = server_certificate(authority, ["localhost", "127.0.0.1"])
    keys = store.part("flower/keys")
    keys.write_secret("ca.crt", authority.certificate)
    keys.write_secret("server.crt", pair.public)
    keys.write_secret("server.key", pair.private)
    inner, outer = free_port(), free_port()
    home = folder / "coordinator"
    store.part("flower/coordinator").write_secret(
        "config.toml",
        f'[superlink]\ndefault = "{LAB}"\n[superlink.{LAB}]\naddress = "127.0.0.1:{inner}"\n'
        f'root-certificates = "{keys.path.resolve()}/ca.crt"\n'.encode(),
    )
    tools, secrets = Path(sys.executable).parent, keys.path.resolve()
    children: list[Child] = []
    try:
        link = [
            tools / "flower-superlink", "--host", "127.0.0.1", "--port", inner,
            "--ssl-ca-certfile", secrets / "ca.crt", "--ssl-certfile", secrets / "server.crt",
            "--ssl-keyfile", secrets / "server.key", "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        children.append(start("SuperLink", list(map(str, link)), home, folder / "superlink.log"))
        wait_for(inner, children[-1])
        door = [
            sys.executable, "-m", "ticketlab.federate.gate", "127.0.0.1", outer, f"127.0.0.1:{inner}",
            secrets / "server.crt", secrets / "server.key", secrets / "ca.crt",
        ]  # fmt: skip
        children.append(start("gate", list(map(str, door)), home, folder / "gate.log"))
        wait_for(outer, children[-1])
        for name in clients:
            key = client_key()
            keys.write_secret(f"{name}.pub", key.public)
            keys.write_secret(name, key.private)
            flwr(home, "supernode", "register", str(secrets / f"{name}.pub"), LAB, "--name", name)
            node = [
                tools / "flower-supernode", "--root-certificates", secrets / "ca.crt",
                "--superlink", f"127.0.0.1:{outer}", "--host", "127.0.0.1", "--port", free_port(),
                "--auth-supernode-private-key", secrets / name, "--node-config", f'name="{name}" data="{data or ""}"',
            ]  # fmt: skip
            own = store.part(f"flower/{name}")
            own.write_secret("name", name.encode())
            children.append(start(name, list(map(str, node)), own.path.resolve(), folder / f"{name}.log"))
        yield home, children
    finally:
        stop(children)


def _open(store: RunStore, given: Shipment, request: Mapping[str, Any]) -> None:
    facts = {
        "kind": "federate",
        "recipe": given.network.facts["recipe"],
        "method": "federate",
        "data": given.network.facts["data"],
        "stand_in_for": None,
        "source": given.network.facts["source"],
    }
    store.begin(facts)
    store.write_result(REQUEST, request)
