"""Keep a SuperNode running through lost networks, refusals and crashes, and tell in plain words how it stands."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ticketlab.errors import Stop
from ticketlab.federate.processes import Child, stop

SHORTEST, LONGEST = 4.0, 15.0  # seconds before trying again
LEASE = 75.0
"""Seconds, with some to spare, in which Flower takes a client that crashed for online still and refuses it."""
SIGNED_OFF = (0, -signal.SIGINT)
"""How a SuperNode ends that a coordinator does not know any more."""
REMIND = 600.0  # seconds until what has not changed is said again
POLL = 0.25
ONLINE, LOST, AGAIN, REFUSED = "SuperNode ID:", "Connection attempt failed", "Connection successful", "[code: 2004]"
"""What a SuperNode says that tells how it stands."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

GIVEN_UP, EXITS = "Giving up reconnection", "Exit Code:"
"""What it says before it ends; after a network that swallowed packets it hangs instead, on threads of its own."""
HANGS = 10.0  # seconds to end after saying so

State = Literal["connected", "unreachable", "refused", "ended", "stopped"]


@dataclass(frozen=True)
class Told:
    """How a client stands."""

    state: State
    reason: str
    wait: float | None = None
    """Seconds until it is tried again."""

    def __str__(self) -> str:
        return self.reason if self.wait is None else f"{self.reason}; retrying in {self.wait:.0f} s"


Look = Callable[[], str | None]


def supervise(server: str, launch: Callable[[], Child], look: Look, should_stop: Stop) -> Iterator[Told]:
    """Start a SuperNode whenever the coordinator can be reached, until asked to stop.

    Args:
        server: The coordinator's address, for people.
        launch: Starts the SuperNode, with a log of its own.
        look: Why the coordinator cannot be reached now; None where it can.
        should_stop: Asked several times a second.
    """
    wait, crashed = SHORTEST, -LEASE
    while not should_stop():
        problem = look()
        if problem is not None:
            yield Told("unreachable", problem, wait)
        else:
            child = launch()
            try:
                was_connected = yield from _follow(server, child, look, should_stop)
            finally:
                stop([child])
            if should_stop():
                break
            if was_connected:
                wait = SHORTEST
                crashed = crashed if _has_signed_off(child) else time.monotonic()
            yield _why(child, was_connected, time.monotonic() - crashed, wait)
        _pause(wait, should_stop)
        wait = min(1.4 * wait, LONGEST)
    yield Told("stopped", "stopped")


def _follow(server: str, child: Child, look: Look, should_stop: Stop) -> Generator[Told, None, bool]:
    """Tell what a SuperNode says while it runs; returns whether it was ever connected."""
    was_connected = is_lost = False
    read, end = 0, math.inf
    while child.process.poll() is None and not should_stop() and time.monotonic() < end:
        lines, read = new_lines(child.log, read)
        for line in lines:
            if ONLINE in line or (AGAIN in line and is_lost):
                was_connected, is_lost = True, False
                yield Told("connected", f"connected to {server}")
            elif GIVEN_UP in line or EXITS in line:
                end = min(end, time.monotonic() + HANGS)
            elif LOST in line and not is_lost and (problem := look()) is not None:
                is_lost = True
                yield Told("unreachable", f"{problem}; Flower tries again by itself")
        _pause(POLL, should_stop)
    return was_connected


def _has_signed_off(child: Child) -> bool:
    """Whether the coordinator knows that this client has gone, or has itself gone."""
    lines, _ = new_lines(child.log, 0)
    return child.process.returncode in SIGNED_OFF and not any(GIVEN_UP in line for line in lines)


def _why(child: Child, was_connected: bool, since_crash: float, wait: float) -> Told:
    """Why a SuperNode has ended: Flower refuses unknown keys and clients that just crashed alike; the clock tells."""
    lines, _ = new_lines(child.log, 0)
    if any(REFUSED in line for line in lines):
        if since_crash < LEASE:
            return Told("refused", "refused because of the crash (or cut connection) less than 60 s ago", wait)
        reason = (
            "the coordinator does not take this key: not in this federation, not yet or no longer enrolled, "
            "or connected from elsewhere until less than 60 s ago"
        )
        return Told("refused", reason, wait)
    status = child.process.returncode
    if was_connected and any(GIVEN_UP in line for line in lines):
        return Told("ended", "the connection was cut and Flower gave up", wait)
    if was_connected and status in SIGNED_OFF:
        return Told("ended", "the coordinator stopped, or was started again", wait)
    last = next((line for line in reversed(lines) if line.strip()), "nothing")
    return Told("ended", f"the SuperNode ended with status {status}: {last} ({child.log})", wait)


def new_lines(log: Path, start: int) -> tuple[list[str], int]:
    """Whole lines of a log from a byte on, without colours, and where the next ones begin."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            whole = file.read().rpartition(b"\n")[0]
    except OSError:
        return [], start
    if not whole:
        return [], start
    return COLOURS.sub("", whole.decode(errors="replace")).splitlines(), start + len(whole) + 1


def changes(events: Iterator[Told], clock: Callable[[], float] = time.monotonic) -> Iterator[Told]:
    """Leave out what was just said, but say it again after a while."""
    last: Told | None = None
    at = 0.0
    for event in events:
        if last is None or (event.state, event.reason) != (last.state, last.reason) or clock() - at > REMIND:
            last, at = event, clock()
            yield event


def _pause(seconds: float, should_stop: Stop) -> None:
    end = time.monotonic() + seconds
    while not should_stop() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, POLL))
