"""Clients of a lab: given a key and a join file, revoked; and which of a federation's come from outside, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from ticketlab.errors import RunError, TicketlabError
from ticketlab.federate.address import check_name, is_everywhere, is_loopback, read_address
from ticketlab.federate.join_file import JoinFile, encode_join
from ticketlab.federate.keys import Authority, client_key, make_authority, valid_until
from ticketlab.registry import did_you_mean
from ticketlab.runs.lab import Enrolled, LabStore

State = Literal["enrolled", "revoked", "expired"]


@dataclass(frozen=True)
class Door:
    """Where clients from outside come in."""

    host: str
    """What the gate listens on."""
    port: int
    names: tuple[str, ...]
    """Names and numbers that its certificate is for."""

    @property
    def local(self) -> str:
        """How this machine reaches it."""
        if not is_everywhere(self.host):
            return self.host
        return "::1" if ":" in self.host else "127.0.0.1"


def enroll(
    runs: Path, name: str, server: str, days: int, again: bool = False, out: Path | None = None
) -> tuple[Enrolled, Path]:
    """Give a client a key and write its join file; raises TicketlabError for one that is enrolled already."""
    check_name(name)
    address, lab, path = read_address(server), LabStore(runs), out or Path(f"{name}.join")
    with lab.lock():
        if lab.read_client(name) is not None and not again:
            raise TicketlabError(
                f"'{name}' is enrolled already; --again makes a new key, and the old one no longer works"
            )
        if path.exists() and not again:
            raise TicketlabError(f"{path} exists; name another file with --out, or replace it with --again")
        authority, pair, now = _authority(lab), client_key(), datetime.now(UTC)
        expires = now + timedelta(days)
        if expires > valid_until(authority.certificate):
            last = (valid_until(authority.certificate) - now).days
            raise TicketlabError(f"--days {days}: the lab's own certificate ends in {last} days; use at most those")
        client = Enrolled(name, str(address), pair.public.decode(), _text(now), _text(expires))
        join = JoinFile(name, client.server, authority.certificate.decode(), pair.private.decode(), client.expires)
        lab.write_join(path, encode_join(join))
        lab.write_client(client)
    return client, path


def revoke(runs: Path, name: str) -> Enrolled:
    """Let a client's key no longer in; raises TicketlabError for a name that was never enrolled."""
    lab = LabStore(runs)
    check_name(name)
    known = [client.name for client in lab.clients()]
    if name not in known:
        raise TicketlabError(f"'{name}' is not enrolled" + (did_you_mean(name, known) if known else ""))
    with lab.lock():
        client = lab.read_client(name)
        assert client is not None
        if client.revoked is None:
            client = replace(client, revoked=_text(datetime.now(UTC)))
            lab.write_client(client)
    return client


def state_of(client: Enrolled, now: datetime) -> State:
    """Whether a client may come in."""
    if client.revoked is not None:
        return "revoked"
    return "expired" if datetime.fromisoformat(client.expires) <= now else "enrolled"


def expected(runs: Path, names: Iterable[str]) -> dict[str, Enrolled]:
    """Those of a federation's clients that come from outside; raises TicketlabError for what may not come in."""
    lab, now = LabStore(runs), datetime.now(UTC)
    found = {name: client for name in names if (client := lab.read_client(name)) is not None}
    problems = []
    for name, client in found.items():
        state = state_of(client, now)
        if state != "enrolled":
            since = client.revoked or client.expires
            way_out = f"leave it out, or: ticketlab client enroll {name} --server {client.server} --again"
            problems.append(f"'{name}' is {state} since {since}; {way_out}")
    if problems:
        raise TicketlabError("\n".join(problems))
    return found


def door(runs: Path, clients: Iterable[Enrolled], host: str | None = None) -> Door:
    """Where the gate listens for these clients; raises TicketlabError where they knock at different ports.

    It listens on every address of the machine, but on loopback alone where that is all that clients use.
    """
    addresses = {client.name: read_address(client.server) for client in clients}
    ports = {address.port for address in addresses.values()}
    if len(ports) > 1:
        told = ", ".join(f"{name} at {address}" for name, address in addresses.items())
        raise TicketlabError(
            f"clients of one federation knock at one port ({told}); enroll them with the same one: "
            "ticketlab client enroll NAME --server HOST:PORT --again"
        )
    named = [read_address(client.server).host for client in LabStore(runs).clients()]
    only_here = all(is_loopback(address.host) for address in addresses.values())
    listen = host or _listen({":" in address.host for address in addresses.values()}, only_here)
    own = (["::1"] if ":" in listen else []) if is_everywhere(listen) else [listen]
    return Door(listen, ports.pop(), tuple(dict.fromkeys(["localhost", "127.0.0.1", *named, *own])))


def _listen(are_version_6: set[bool], only_here: bool) -> str:
    """Every address of the kind that clients use, or loopback of it."""
    if len(are_version_6) > 1:
        raise TicketlabError(
            "some clients were enrolled with an IPv6 number and some were not; enroll all with a name or with numbers "
            "of one kind, or name one address with --host"
        )
    if are_version_6 == {True}:
        return "::1" if only_here else "::"
    return "127.0.0.1" if only_here else "0.0.0.0"


def lab_authority(runs: Path) -> Authority:
    """The authority that enrolled clients trust."""
    lab = LabStore(runs)
    known = lab.read_authority()
    if known is None:
        raise RunError(f"{lab.path}: no authority; enroll every client again: ticketlab client enroll NAME --again")
    return Authority(*known)


def _authority(lab: LabStore) -> Authority:
    known = lab.read_authority()
    if known is not None:
        return Authority(*known)
    made = make_authority()
    lab.write_authority(made.certificate, made.key)
    return made


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
