"""Addresses as people type them: HOST:PORT, with an IPv6 number in brackets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ticketlab.errors import TicketlabError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")
"""Of a client: also the name of files and of a service."""
NO_NAME = "'{}' is no name of a client; use letters, digits, - and _ (at most 63, - not first)"
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Address:
    """Where a coordinator is reached."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> Address:
    """`lab.local:8443`, `192.168.1.5:8443` or `[fd00::5]:8443`; raises TicketlabError for anything else."""
    host, _, port = text.strip().rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_named = bool(HOST.fullmatch(host)) or (host == f"[{bare}]" and _is_number(bare, 6))
    if not is_named or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise TicketlabError(f"'{text}' is no server address; write HOST:PORT, such as lab.local:8443")
    return Address(bare, int(port))


def check_name(name: str) -> None:
    """Raise TicketlabError for what cannot name a client."""
    if not NAME.fullmatch(name):
        raise TicketlabError(NO_NAME.format(name))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself."""
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def is_everywhere(host: str) -> bool:
    """Whether listening there is listening on every address of the machine."""
    return _is_number(host) and ipaddress.ip_address(host).is_unspecified


def _is_number(host: str, version: int | None = None) -> bool:
    try:
        return version in (None, ipaddress.ip_address(host).version)
    except ValueError:
        return False
