"""What a coordinator keeps of its clients: the authority that signs, and each client's public key. Needs no torch.

runs/lab/
  authority.json           certificate and private key of the authority; its owner alone may read it
  clients/pi1.json         public key, server address, created, expires, revoked
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from ticketlab.errors import RunError
from ticketlab.runs.whole import read_json, write_bytes, write_json


@dataclass(frozen=True)
class Enrolled:
    """A client that was given a key; times are UTC in ISO 8601."""

    name: str
    server: str
    """HOST:PORT, as the client types it."""
    public_key: str
    created: str
    expires: str
    revoked: str | None = None


class LabStore:
    """The lab's folder in a folder of runs."""

    def __init__(self, runs: Path) -> None:
        self.path = runs / "lab"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lab, so that two commands at a time do not make two authorities."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / ".lock", timeout=10):
                yield
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def read_authority(self) -> tuple[bytes, bytes] | None:
        """Certificate and private key of the authority as PEM; None before the first client."""
        path = self.path / "authority.json"
        if not path.exists():
            return None
        content = _read(path)
        try:
            return content["certificate"].encode(), content["key"].encode()
        except KeyError as error:
            raise _damaged(path) from error

    def write_authority(self, certificate: bytes, key: bytes) -> None:
        """Keep the authority for all clients to come."""
        content = json.dumps({"certificate": certificate.decode(), "key": key.decode()}, indent=2)
        write_bytes(self.path / "authority.json", content.encode(), mode=0o600)

    def read_client(self, name: str) -> Enrolled | None:
        """A client that was enrolled, if it was."""
        path = self.path / "clients" / f"{name}.json"
        return _client(path) if path.exists() else None

    def write_client(self, client: Enrolled) -> None:
        """Keep a client; replaces the one of its name."""
        write_json(self.path / "clients" / f"{client.name}.json", asdict(client))

    def write_join(self, path: Path, content: bytes) -> None:
        """Put a client's join file where it is copied from; its owner alone may read it."""
        try:
            write_bytes(path, content, mode=0o600)
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; name another file with --out") from error

    def clients(self) -> list[Enrolled]:
        """All clients that were ever enrolled, by name."""
        return [_client(path) for path in sorted((self.path / "clients").glob("*.json"))]


def _client(path: Path) -> Enrolled:
    try:
        return Enrolled(**_read(path))
    except TypeError as error:
        raise _damaged(path) from error


def _read(path: Path) -> dict[str, str]:
    try:
        return read_json(path)
    except RunError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> RunError:
    lost = "all clients then need new keys" if path.name == "authority.json" else "the client then needs a new key"
    return RunError(
        f"{path}: damaged; put a copy of it back, or delete it: {lost} (ticketlab client enroll NAME --again)"
    )
