"""Bytes that really went through the gate, by client: Flower's requests and answers with their headers, without TLS."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from ticketlab.errors import RunError
from ticketlab.runs.whole import read_json, write_json

KEY = b"flwr-public-key"
"""Header that tells who asks."""
PERIOD = 0.5  # seconds between writes
LARGE = 4096
"""Bytes of what is written at once, so that a round's messages are counted in it."""

Headers = Iterable[tuple[bytes, bytes]]


class Traffic:
    """Counts of one gate, kept in a file for who looks on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, list[int]] = {}
        self._written = 0.0

    def add(self, asked: Headers, request: bytes, answered: Headers, answer: bytes) -> None:
        """One request and its answer, of the client that it names."""
        headers = list(asked)
        key = next((value for name, value in headers if name.lower() == KEY), None)
        if key is None:
            return
        up, down = self.counts.setdefault(_short(key), [0, 0])
        self.counts[_short(key)] = [up + _size(headers, request), down + _size(answered, answer)]
        if len(request) + len(answer) > LARGE or time.monotonic() - self._written > PERIOD:
            self._written = time.monotonic()
            with suppress(OSError):  # a full disk is no reason to refuse a client
                write_json(self.path, self.counts)


def _size(headers: Headers, body: bytes) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers) + len(body)


def _short(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()[:16]


def counted(path: Path, public_key: bytes) -> tuple[int, int] | None:
    """Bytes up and down so far of the client with this key, in OpenSSH's form; None where nothing was counted."""
    key = serialization.load_ssh_public_key(public_key)
    told = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        found = read_json(path).get(_short(base64.b64encode(told)))
    except RunError:
        return None
    return (int(found[0]), int(found[1])) if found else None
