"""What runs on a device: read the join file, unpack the keys, keep a SuperNode running until asked to stop."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import signal
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ticketlab.errors import Stop, TicketlabError
from ticketlab.federate.address import read_address
from ticketlab.federate.join_file import JoinFile, decode_join
from ticketlab.federate.probe import look
from ticketlab.federate.processes import GRACE, Child, free_port, start
from ticketlab.federate.supervisor import Told, changes, supervise
from ticketlab.federate.systemd import service, unit
from ticketlab.runs.device import DeviceStore, state_folder


def read_join(path: Path) -> JoinFile:
    """A join file from disk; raises TicketlabError that names it and what is wrong."""
    try:
        return decode_join(path.read_bytes())
    except OSError as error:
        raise TicketlabError(f"{path}: {error.strerror}") from error
    except TicketlabError as error:
        raise TicketlabError(f"{path}: {error}") from error


def readable_by_others(path: Path) -> bool:
    """Whether the private key in a join file is open to other users of the device."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def join(path: Path, data: Path | None, should_stop: Stop, launcher: Path | None = None) -> Iterator[Told | str]:
    """Take part in the coordinator's federations; yields warnings, and how the client stands whenever that changes.

    Args:
        path: The join file.
        data: Folder with data sets; None for this device's default.
        should_stop: Asked several times a second.
        launcher: The program that is kept running; Flower's own if left out.
    """
    told = read_join(path)
    check_usable(told, path, data)
    if readable_by_others(path):
        yield f"warning: other users can read {path}, and so the private key in it: chmod 600 {path}"
    program = launcher or Path(sys.executable).parent / "flower-supernode"
    if not program.exists():
        raise TicketlabError(f"{program} is not there; install Flower beside ticketlab: pip install 'flwr>=1.41,<1.43'")
    store = device_store(told.name)
    with store.lock():
        store.unpack(told.authority.encode(), told.private_key.encode())
        _stop_orphan(store)

        def launch() -> Child:
            child = start(told.name, node_command(program, told, store, data), store.home.resolve(), store.fresh_log())
            store.write_pid(child.process.pid)
            return child

        server = read_address(told.server)
        yield from changes(supervise(told.server, launch, lambda: look(server, told.authority).problem, should_stop))


def check_usable(told: JoinFile, path: Path, data: Path | None) -> None:
    """Raise TicketlabError for what cannot be joined with."""
    if told.is_expired(datetime.now(UTC)):
        raise TicketlabError(
            f"{path}: expired on {told.expires}; on the coordinator: "
            f"ticketlab client enroll {told.name} --server {told.server} --again"
        )
    if data is not None and not os.access(data, os.R_OK | os.X_OK):
        raise TicketlabError(f"--data {data}: no folder that can be read")
    if data is not None and '"' in str(data.resolve()):
        raise TicketlabError(f"--data {data}: Flower takes no quotation marks in it; name another folder")


def device_store(name: str) -> DeviceStore:
    """This device's folder for a client."""
    return DeviceStore((state_folder(os.environ, Path.home()) / name).resolve())


def node_command(program: Path, told: JoinFile, store: DeviceStore, data: Path | None) -> list[str]:
    """How the SuperNode is started."""
    folder = "" if data is None else str(data.resolve())
    return [
        str(program), "--root-certificates", str(store.authority), "--superlink", told.server,
        "--host", "127.0.0.1", "--port", str(free_port()), "--auth-supernode-private-key", str(store.key),
        "--node-config", f'name="{told.name}" data="{folder}"',
    ]  # fmt: skip


def systemd(path: Path, data: Path | None) -> tuple[str, list[str]]:
    """The unit that joins at every start, and the commands that install it."""
    told = read_join(path)
    given = [] if data is None else ["--data", str(data.resolve())]
    command = [sys.executable, "-m", "ticketlab", "client", "join", str(path.resolve()), *given]
    name = service(told.name)
    shown = shlex.join([*command, "--systemd"])
    return unit(told.name, getpass.getuser(), command), [
        f"{shown} | sudo tee /etc/systemd/system/{name}.service",
        f"sudo systemctl enable --now {name}",
    ]


def _stop_orphan(store: DeviceStore) -> None:
    """End a SuperNode whose supervisor was killed: the key serves one connection at a time."""
    end = time.monotonic() + GRACE
    while (pid := store.orphan()) is not None:
        number = signal.SIGTERM if time.monotonic() < end else signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        time.sleep(0.2)
