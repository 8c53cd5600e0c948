"""Flower while a federation runs: SuperLink on loopback, a gate before it, a supervised SuperNode for local clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ticketlab.errors import TicketlabError
from ticketlab.federate.address import Address
from ticketlab.federate.join_file import JoinFile, encode_join
from ticketlab.federate.keys import Authority, Pair, client_key, make_authority, server_certificate
from ticketlab.federate.processes import Child, flwr, free_port, is_free, start, stop, wait_for
from ticketlab.runs.lab import Enrolled
from ticketlab.runs.store import RunStore
from ticketlab.workflows.enroll import Door, door, expected, lab_authority

LAB = "lab"
VALID = timedelta(days=30)
"""Of a local client's join file, which is made anew at every start."""


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


def entrance_of(runs: Path, clients: Sequence[str], host: str | None) -> Entrance:
    """The lab's, where any client is enrolled; else loopback alone, a free port and an authority for this time."""
    outside = expected(runs, clients)
    if outside:
        return Entrance(outside, door(runs, outside.values(), host), lab_authority(runs))
    return Entrance({}, Door("127.0.0.1", free_port(), ("localhost", "127.0.0.1")), make_authority())


@contextmanager
def running(
    store: RunStore, clients: Sequence[str], data: str | None, entrance: Entrance
) -> Iterator[tuple[Path, list[Child]]]:
    """Everything started; yields the coordinator's home of Flower and the programs without which no round can go on.

    All are stopped afterwards, clients first.
    """
    flower, inner = RunStore(store.path.resolve() / "flower"), free_port()
    _write_keys(flower, entrance)
    home = _write_config(flower, inner)
    flower.forget("traffic.json")
    pairs = {name: client_key() for name in clients if name not in entrance.expected}
    outside = {name: enrolled.public_key.encode() for name, enrolled in entrance.expected.items()}
    vital: list[Child] = []
    local: list[Child] = []
    try:
        vital.append(_super_link(flower.path, home, inner))
        wait_for(inner, vital[-1])
        # known before the gate opens, so that no client is refused that comes at once
        for name in clients:
            _register(flower, home, name, pairs[name].public if name in pairs else outside[name])
        vital.append(_gate(flower.path, home, inner, entrance.door))
        wait_for(entrance.door.port, vital[-1], host=entrance.door.local)
        for name, pair in pairs.items():
            local.append(_local_client(flower.part(f"clients/{name}"), name, pair, entrance, data))
        yield home, vital
    finally:
        stop(local)
        for child in reversed(vital):
            stop([child])


def _write_keys(flower: RunStore, entrance: Entrance) -> None:
    """What SuperLink and gate show to clients."""
    pair = server_certificate(entrance.authority, entrance.door.names)
    keys = flower.part("keys")
    keys.write_secret("ca.crt", entrance.authority.certificate)
    keys.write_secret("server.crt", pair.public)
    keys.write_secret("server.key", pair.private)


def _write_config(flower: RunStore, port: int) -> Path:
    """Where `flwr` finds the SuperLink; returns the coordinator's home, which says so."""
    home = flower.part("coordinator")
    home.write_secret(
        "config.toml",
        f'[superlink]\ndefault = "{LAB}"\n[superlink.{LAB}]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{flower.path}/keys/ca.crt"\n'.encode(),
    )
    return home.path


def _super_link(folder: Path, home: Path, port: int) -> Child:
    keys = folder / "keys"
    command = [
        Path(sys.executable).parent / "flower-superlink", "--host", "127.0.0.1", "--port", port,
        "--ssl-ca-certfile", keys / "ca.crt", "--ssl-certfile", keys / "server.crt",
        "--ssl-keyfile", keys / "server.key", "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    return start("SuperLink", list(map(str, command)), home, folder / "superlink.log")


def _register(flower: RunStore, home: Path, name: str, public: bytes) -> None:
    """Tell the SuperLink a client's key, by which it is let in."""
    keys = flower.part("keys")
    keys.write_secret(f"{name}.pub", public)
    flwr(home, "supernode", "register", str(keys.path / f"{name}.pub"), LAB, "--name", name)


def _gate(folder: Path, home: Path, inner: int, place: Door) -> Child:
    keys = folder / "keys"
    command = [
        sys.executable, "-m", "ticketlab.federate.gate", place.host, place.port, f"127.0.0.1:{inner}",
        keys / "server.crt", keys / "server.key", keys / "ca.crt", folder / "traffic.json",
    ]  # fmt: skip
    return start("gate", list(map(str, command)), home, folder / "gate.log")


def _local_client(own: RunStore, name: str, pair: Pair, entrance: Entrance, data: str | None) -> Child:
    """What a device runs, started here: it joins with a file of its own and is kept running."""
    until = (datetime.now(UTC) + VALID).isoformat(timespec="seconds")
    server = str(Address(entrance.door.local, entrance.door.port))
    told = JoinFile(name, server, entrance.authority.certificate.decode(), pair.private.decode(), until)
    own.write_secret(f"{name}.join", encode_join(told))
    folder = own.path.resolve()
    command = [sys.executable, "-m", "ticketlab", "client", "join", str(folder / f"{name}.join")]
    command += ["--data", data] if data else []
    return start(name, command, folder, folder / "client.log", {"XDG_STATE_HOME": str(folder / "state")})
