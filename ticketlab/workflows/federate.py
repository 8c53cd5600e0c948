"""Train a ticket across clients on Flower: SuperLink on loopback, a gate before it, a SuperNode for each client."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ticketlab import federate
from ticketlab.codec import Sparse, encode
from ticketlab.data.partition import partitions
from ticketlab.errors import FailedRun, Interrupted, TicketlabError
from ticketlab.federate.address import Address
from ticketlab.federate.keys import Authority, client_key, make_authority, server_certificate
from ticketlab.federate.processes import TESTED, Child, flwr, free_port, is_free, start, stop, wait_for
from ticketlab.registry import check_options
from ticketlab.runs.lab import Enrolled
from ticketlab.runs.manifest import short_hash
from ticketlab.runs.store import RunStore
from ticketlab.workflows.enroll import Door, door, expected, lab_authority
from ticketlab.workflows.federate_server import FAILURE, REQUEST, round_name
from ticketlab.workflows.run import Machine, outcome
from ticketlab.workflows.ship import Shipment
from ticketlab.workflows.train_level import Notice

APP = Path(federate.__path__[0]) / "app"
LAB = "lab"
RESULT = "federated.json"
POLL = 0.2


@dataclass(frozen=True)
class Settings:
    """How a federation trains."""

    clients: tuple[str, ...]
    rounds: int = 3
    epochs: int = 1
    lr: float = 0.1
    batch_size: int = 32
    partition: str = "iid"
    partition_options: Mapping[str, Any] | None = None
    precision: str = "float32"
    min_clients: int = 1
    round_timeout: float = 600.0
    join_timeout: float = 120.0
    seed: int = 0

    def check(self) -> None:
        """Raise TicketlabError for what cannot be run."""
        if not self.clients or len(set(self.clients)) < len(self.clients):
            raise TicketlabError(
                f"--clients: name each client once, with commas between (got {','.join(self.clients)})"
            )
        for name in self.clients:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise TicketlabError(f"--clients: '{name}' is no name; use letters, digits, - and _")
        if self.min_clients > len(self.clients):
            raise TicketlabError(f"--min-clients {self.min_clients}: there are {len(self.clients)} clients")
        problems = check_options(partitions.find(self.partition), dict(self.partition_options or {}))
        if problems:
            raise TicketlabError("\n".join(f"--partition {self.partition}: {message}" for _, message in problems))


Event = Notice | dict[str, Any]


def federate_ticket(
    given: Shipment,
    settings: Settings,
    machine: Machine,
    should_stop: Callable[[], bool] = lambda: False,
    host: str | None = None,
) -> Iterator[Event]:
    """Train across clients; yields notices, each finished round, and at the end the record of the whole.

    Finished rounds are read, not repeated. Raises Interrupted when asked to stop, FailedRun where the rounds cannot
    go on.
    """
    settings.check()
    check_flower()
    request = _request(given, settings, machine)
    split_among = partitions.find(settings.partition)
    split_among(given.splits.train.labels, len(settings.clients), settings.seed, **request["partition_options"])
    entrance = _entrance(machine.runs, settings.clients, host)
    store = RunStore(machine.runs / f"{given.store.name}-federated-{_hash(given, request)}")
    if not all(store.has_result(round_name(number)) for number in range(1, settings.rounds + 1)):
        entrance.check()
    with store.lock():
        _open(store, given, request)
        store.forget(FAILURE)
        missing = [number for number in range(1, settings.rounds + 1) if not store.has_result(round_name(number))]
        local = [name for name in settings.clients if name not in entrance.expected]
        if local:
            yield Notice(f"{store.name}: not enrolled, so local processes here: {', '.join(local)}")
        for number in range(1, settings.rounds + 1):
            if number not in missing:
                yield store.read_result(round_name(number))
        with outcome(store):
            if missing:
                yield from _rounds(store, request, missing, entrance, should_stop)
            record = _record(store, given, request)
            store.write_result(RESULT, record)
        yield record


def check_flower() -> None:
    """Raise TicketlabError for a version of Flower that was not tested: its transport changes between releases."""
    found = tuple(int(part) for part in version("flwr").split(".")[:2])
    if not TESTED[0] <= found < TESTED[1]:
        wanted = " and ".join(".".join(map(str, each)) for each in TESTED)
        raise TicketlabError(
            f"flwr {version('flwr')} was not tested; install one between {wanted}: pip install 'flwr==1.41.*'"
        )


def _rounds(
    store: RunStore,
    request: Mapping[str, Any],
    missing: Sequence[int],
    entrance: Entrance,
    should_stop: Callable[[], bool],
) -> Iterator[Event]:
    """Start everything, follow the rounds, stop everything."""
    with _flower(store, request["clients"], request["data"], entrance) as (home, children):
        answer = flwr(home, "run", str(APP), LAB, "--run-config", f'folder="{store.path.resolve()}"')
        run = str(answer["run-id"])
        until = f"{datetime.now() + timedelta(seconds=request['join_timeout']):%H:%M}"
        for name in entrance.expected:
            yield Notice(f"waiting for {name} until {until}; on it run: ticketlab client join {name}.join --data DIR")
        try:
            for number in missing:
                while not store.has_result(round_name(number)):
                    if should_stop():
                        raise Interrupted("stopped; the same command goes on with the next round")
                    _check(store, children)
                    time.sleep(POLL)
                yield store.read_result(round_name(number))
        except BaseException:
            with suppress(FailedRun):  # a SuperLink that is gone cannot be told; why it went is what counts
                flwr(home, "stop", run, LAB)
            raise


def _check(store: RunStore, children: Sequence[Child]) -> None:
    """Raise FailedRun where the rounds will not go on."""
    if store.has_result(FAILURE):
        raise FailedRun(store.read_result(FAILURE)["error"].removeprefix("FailedRun: "))
    for child in children:
        child.check()


@dataclass(frozen=True)
class Entrance:
    """Who comes in from outside, where, and under whose certificate."""

    expected: Mapping[str, Enrolled]
    door: Door
    authority: Authority

    def check(self) -> None:
        """Raise TicketlabError where another program has the port."""
        if not is_free(self.door.host, self.door.port):
            raise TicketlabError(
                f"{self.door.host}:{self.door.port} cannot be listened on: another program or federation has it; "
                "stop that, or enroll the clients with another port"
            )


def _entrance(runs: Path, clients: Sequence[str], host: str | None) -> Entrance:
    """The lab's, where any client is enrolled; else loopback alone, a free port and an authority for this time."""
    outside = expected(runs, clients)
    if outside:
        return Entrance(outside, door(runs, outside.values(), host), lab_authority(runs))
    return Entrance({}, Door("127.0.0.1", free_port(), ("localhost", "127.0.0.1")), make_authority())


@contextmanager
def _flower(
    store: RunStore, clients: Sequence[str], data: str | None, entrance: Entrance
) -> Iterator[tuple[Path, list[Child]]]:
    """SuperLink, gate and one SuperNode for each client that is not enrolled."""
    folder, door = store.path.resolve() / "flower", entrance.door
    pair = server_certificate(entrance.authority, door.names)
    keys = store.part("flower/keys")
    keys.write_secret("ca.crt", entrance.authority.certificate)
    keys.write_secret("server.crt", pair.public)
    keys.write_secret("server.key", pair.private)
    inner = free_port()
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
        # known before the gate opens, so that no client is refused that comes at once
        for name in clients:
            keys.write_secret(f"{name}.pub", _public_key(keys, name, entrance.expected))
            flwr(home, "supernode", "register", str(secrets / f"{name}.pub"), LAB, "--name", name)
        gate = [
            sys.executable, "-m", "ticketlab.federate.gate", door.host, door.port, f"127.0.0.1:{inner}",
            secrets / "server.crt", secrets / "server.key", secrets / "ca.crt",
        ]  # fmt: skip
        children.append(start("gate", list(map(str, gate)), home, folder / "gate.log"))
        wait_for(door.port, children[-1], host=door.local)
        for name in clients:
            if name in entrance.expected:
                continue
            node = [
                tools / "flower-supernode", "--root-certificates", secrets / "ca.crt",
                "--superlink", str(Address(door.local, door.port)), "--host", "127.0.0.1", "--port", free_port(),
                "--auth-supernode-private-key", secrets / name, "--node-config", f'name="{name}" data="{data or ""}"',
            ]  # fmt: skip
            own = store.part(f"flower/clients/{name}")
            own.write_secret("name", name.encode())
            children.append(start(name, list(map(str, node)), own.path.resolve(), own.path.resolve() / "flower.log"))
        yield home, children
    finally:
        stop(children)


def _public_key(keys: RunStore, name: str, outside: Mapping[str, Enrolled]) -> bytes:
    """The key that a client signs with: of its device, or a fresh one for a local process."""
    if name in outside:
        return outside[name].public_key.encode()
    pair = client_key()
    keys.write_secret(name, pair.private)
    return pair.public


def _request(given: Shipment, settings: Settings, machine: Machine) -> dict[str, Any]:
    """What the two programs are told, as JSON."""
    source = given.network.facts["source"]
    train = {"optimizer": "sgd", "lr": settings.lr, "momentum": 0.0, "batch_size": settings.batch_size, "steps": "1ep"}
    return {
        **asdict(settings),
        "clients": list(settings.clients),
        "partition_options": dict(settings.partition_options or {}),
        "train": train,
        "runs": str(given.store.path.resolve().parent),
        "source": given.store.name,
        "level": None if given.kind == "fused" else source["level"],
        "replicate": 1 if given.kind == "fused" else source["replicate"],
        "data": str(machine.places.root.resolve()) if machine.places.root else None,
    }


def _record(store: RunStore, given: Shipment, request: Mapping[str, Any]) -> dict[str, Any]:
    """The federation as a whole, as `--json` prints it."""
    rounds = [store.read_result(round_name(number)) for number in range(1, request["rounds"] + 1)]
    dense = sum(value.nbytes for value in given.network.model.state_dict().values())
    answered = [client for one in rounds for client in one["clients"] if client["state"] == "ok"]
    ratio = {
        way: round(dense * len(answered) / total, 2) if (total := sum(c[f"bytes_{way}"] for c in answered)) else None
        for way in ("up", "down")
    }
    known = len(encode(Sparse(given.network.mask, dict(given.network.model.state_dict()), {}), is_known=True))
    return {
        "run": str(store.path),
        "source": given.network.name,
        "density": given.network.facts["density"],
        "start": {"test_accuracy": given.test_accuracy},
        "rounds": rounds,
        "dense_bytes": dense,
        "ratio": ratio,
        "values_bytes": known,
    }


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


def _hash(given: Shipment, request: Mapping[str, Any]) -> str:
    """Short hash of what decides the result; the number of rounds and the patience do not."""
    told_apart = {key: value for key, value in request.items() if key not in _FREE}
    return short_hash({"digest": given.network.facts["source"].get("digest"), **told_apart})


_FREE = ("rounds", "round_timeout", "join_timeout", "min_clients", "runs", "data")
