"""What a device keeps to take part in federations: keys, Flower's state, and what Flower said. Needs no torch.

~/.local/state/ticketlab/clients/pi1/
  authority.crt  key       unpacked from the join file; their owner alone may read them
  flower/                  Flower's own folder
  flower.log               what the SuperNode said since it was started last, and the time before (flower.log.1)
  pid                      of the SuperNode
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ticketlab.errors import RunError
from ticketlab.runs.whole import write_bytes


def state_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Where state of this user's programs is kept."""
    return Path(environment.get("XDG_STATE_HOME") or home / ".local" / "state") / "ticketlab" / "clients"


class DeviceStore:
    """The folder of one client on its device."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority, self.key, self.home = path / "authority.crt", path / "key", path / "flower"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the client; raises RunError where it runs here already: one key serves one connection."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            held = FileLock(self.path / ".lock", timeout=0)
            held.acquire()
        except Timeout as error:
            raise RunError(f"{self.path.name} has joined from this device already; stop that first") from error
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); set $XDG_STATE_HOME") from error
        try:
            yield
        finally:
            held.release()

    def unpack(self, authority: bytes, key: bytes) -> None:
        """Put the keys where Flower reads them."""
        write_bytes(self.authority, authority, mode=0o600)
        write_bytes(self.key, key, mode=0o600)

    def fresh_log(self) -> Path:
        """A log that is empty; what was said before is kept beside it, once."""
        log = self.path / "flower.log"
        with suppress(FileNotFoundError):
            log.replace(self.path / "flower.log.1")
        return log

    def write_pid(self, pid: int) -> None:
        """Keep who the SuperNode is, in case that nobody is left to stop it."""
        write_bytes(self.path / "pid", str(pid).encode())

    def orphan(self) -> int | None:
        """A SuperNode with this client's key that outlived its supervisor, where the system tells."""
        try:
            pid = int((self.path / "pid").read_text())
            told = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.key) in told else None
