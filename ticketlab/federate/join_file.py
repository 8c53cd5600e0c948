"""The one file that a device needs to join: who it is, where the coordinator is, whom to trust, and its private key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ticketlab.errors import TicketlabError
from ticketlab.federate.address import check_name, read_address

KIND, VERSION = "ticketlab join file", 1
FIELDS = ("name", "server", "authority", "private_key", "expires")


@dataclass(frozen=True)
class JoinFile:
    """What a join file says; certificate and key are PEM, the time is UTC in ISO 8601."""

    name: str
    server: str
    authority: str
    private_key: str
    expires: str

    def is_expired(self, now: datetime) -> bool:
        """Whether the coordinator takes the key no more."""
        return datetime.fromisoformat(self.expires) <= now


def encode_join(join: JoinFile) -> bytes:
    """A join file's content; the digest finds damage and edits, it is no signature."""
    content = {"kind": KIND, "version": VERSION, **asdict(join)}
    return (json.dumps({**content, "digest": _digest(content)}, indent=2) + "\n").encode()


def decode_join(content: bytes) -> JoinFile:
    """A join file that is whole and whose parts can be read; raises TicketlabError that tells what is wrong."""
    again = "copy it again, or make a new one: ticketlab client enroll NAME --again"
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TicketlabError(f"not a join file, or cut short; {again}") from error
    if not isinstance(told, dict) or told.get("kind") != KIND:
        raise TicketlabError("not a join file; ticketlab client enroll makes one")
    if told.get("version") != VERSION:
        raise TicketlabError(
            f"version {told.get('version')} of join files, this ticketlab reads {VERSION}; use the same on both sides"
        )
    missing = [name for name in FIELDS if not isinstance(told.get(name), str)]
    if missing:
        raise TicketlabError(f"lacks {', '.join(missing)}; {again}")
    if told.pop("digest", None) != _digest(told):
        raise TicketlabError(f"was changed since it was made; {again}")
    join = JoinFile(**{name: told[name] for name in FIELDS})
    _check(join, again)
    return join


def _check(join: JoinFile, again: str) -> None:
    check_name(join.name)
    read_address(join.server)
    for what, read in (
        ("private_key", lambda: serialization.load_ssh_private_key(join.private_key.encode(), None)),
        ("authority", lambda: x509.load_pem_x509_certificate(join.authority.encode())),
        ("expires", lambda: datetime.fromisoformat(join.expires).astimezone()),
    ):
        try:
            read()
        except (ValueError, OverflowError) as error:
            raise TicketlabError(f"its {what} cannot be read; {again}") from error
    if datetime.fromisoformat(join.expires).tzinfo is None:
        raise TicketlabError(f"its expires has no time zone; {again}")


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
