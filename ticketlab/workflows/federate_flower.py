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
    folder, place = store.path.resolve() / "flower", entrance.door
    pair = server_certificate(entrance.authority, place.names)
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
    secrets = keys.path.resolve()
    store.part("flower").forget("traffic.json")
    vital: list[Child] = []
    local: list[Child] = []
    try:
        link = [
            Path(sys.executable).parent / "flower-superlink", "--host", "127.0.0.1", "--port", inner,
            "--ssl-ca-certfile", secrets / "ca.crt", "--ssl-certfile", secrets / "server.crt",
            "--ssl-keyfile", secrets / "server.key", "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        vital.append(start("SuperLink", list(map(str, link)), home, folder / "superlink.log"))
        wait_for(inner, vital[-1])
        pairs = {name: client_key() for name in clients if name not in entrance.expected}
        # known before the gate opens, so that no client is refused that comes at once
        for name in clients:
            public = pairs[name].public if name in pairs else entrance.expected[name].public_key.encode()
            keys.write_secret(f"{name}.pub", public)
            flwr(home, "supernode", "register", str(secrets / f"{name}.pub"), LAB, "--name", name)
        gate = [
            sys.executable, "-m", "ticketlab.federate.gate", place.host, place.port, f"127.0.0.1:{inner}",
            secrets / "server.crt", secrets / "server.key", secrets / "ca.crt", folder / "traffic.json",
        ]  # fmt: skip
        vital.append(start("gate", list(map(str, gate)), home, folder / "gate.log"))
        wait_for(place.port, vital[-1], host=place.local)
        for name, keypair in pairs.items():
            local.append(_local_client(store.part(f"flower/clients/{name}"), name, keypair, entrance, data))
        yield home, vital
    finally:
        stop(local)
        for child in reversed(vital):
            stop([child])


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
