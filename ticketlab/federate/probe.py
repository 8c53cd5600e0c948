"""Whether a coordinator can be reached, and if not, why: asked over TLS before Flower starts, which would not say."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from ticketlab.federate.address import Address

PATIENCE = 10.0  # seconds for a connection
MOST_AHEAD, MOST_BEHIND = 5.0, 300.0
"""Seconds that Flower lets a client's clock differ from the coordinator's."""
REASONS = {
    9: "its certificate is not valid yet by the clock of this device; set the clock (timedatectl set-ntp true)",
    10: "its certificate has expired by the clock of this device; set the clock, or start the coordinator again",
    **dict.fromkeys((62, 64), "its certificate is for other addresses; enroll this client with the address it uses"),
    **dict.fromkeys(
        (2, 7, 18, 19, 20, 21), "its certificate is of another lab; this join file is for another coordinator"
    ),
}
"""OpenSSL's verification errors in words."""


@dataclass(frozen=True)
class Seen:
    """What came of a look at a coordinator."""

    problem: str | None
    """Why it cannot be used now; None where it can."""
    ahead: float | None = None
    """Seconds that this device's clock is ahead of the coordinator's; None where it was not told."""


def look(server: Address, authority: str, patience: float = PATIENCE) -> Seen:
    """Knock at the gate over TLS, trusting one authority alone; asks nothing that needs a key."""
    trusted = ssl.create_default_context(cadata=authority)
    door = http.client.HTTPSConnection(server.host, server.port, timeout=patience, context=trusted)
    try:
        door.request("GET", "/")
        date = door.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        return Seen(f"{server}: {_reason(error, patience)}")
    finally:
        door.close()
    ahead = None if date is None else _ahead(date)
    return Seen(None if ahead is None else clock_problem(ahead), ahead)


def clock_problem(ahead: float) -> str | None:
    """Why Flower would refuse this device's signatures, which hold the time."""
    if -MOST_BEHIND < ahead < MOST_AHEAD:
        return None
    way = "ahead of" if ahead > 0 else "behind"
    return f"the clock of this device is {abs(ahead):.0f} s {way} the coordinator's; set it (timedatectl set-ntp true)"


def _ahead(date: str) -> float | None:
    try:
        told = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    return time.time() - told - 0.5  # the header is cut to whole seconds


def _reason(error: OSError | http.client.HTTPException, patience: float) -> str:
    """An error of a connection in plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return REASONS.get(error.verify_code, f"its certificate is refused: {error.verify_message}")
    words: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
        ((ssl.SSLError, http.client.HTTPException), "something listens there that is no ticketlab coordinator"),
        ((socket.gaierror,), "the name does not resolve; check the network, or enroll with a numeric address"),
        ((ConnectionRefusedError,), "nobody listens; no federation is running there now"),
        ((TimeoutError,), f"no answer within {patience:.0f} s; check network, address and the coordinator's firewall"),
        ((ConnectionResetError, BrokenPipeError), "the connection was cut"),
    )
    known = (said for kinds, said in words if isinstance(error, kinds))
    return next(known, f"not reachable: {getattr(error, 'strerror', None) or error}")
