"""Clients of Flower's simulation engine, in one child process that ends with the coordinator; a program of its own."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ticketlab.errors import TicketlabError
from ticketlab.federate.processes import Child, start, stop
from ticketlab.runs.files import remove, scratch
from ticketlab.runs.results import REQUEST
from ticketlab.runs.store import RunStore
from ticketlab.workflows.federation.server import FOLDER

LOOK = 0.2
"""Seconds between looks whether the coordinator is still there."""

RAY = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "token"}
"""Clients are as urgent as the rounds that wait for them; Ray listens to every network, so it asks who calls."""


def check_ray() -> None:
    """Raise TicketlabError where the engine is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise TicketlabError(
            "--simulate needs Flower's simulation engine, which is not installed; "
            "install it with: python -m pip install 'ticketlab[simulation]'"
        )


@contextmanager
def simulation(store: RunStore, request: Mapping[str, Any]) -> Iterator[Child]:
    """The server's program and its clients, as many at a time as there are cores; Ray's own files go with them."""
    folder = store.path.resolve() / "flower"
    home = store.part("flower/simulation").make_folder()
    cores = min(_cores(), request["settings"]["clients_per_round"] or len(request["clients"]))
    with scratch() as temporary:
        command = [sys.executable, "-m", __name__, store.path.resolve(), temporary, cores, os.getpid()]
        child = start("simulation", list(map(str, command)), home, folder / "simulation.log", is_tied=False)
        try:
            yield child
        finally:
            stop([child])


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- in the child


def main(folder: str, temporary: str, cores: str, parent: str) -> None:
    """Run the rounds that are missing; ends the process."""
    threading.Thread(target=_end_with, args=(int(parent), Path(temporary)), daemon=True).start()
    request = RunStore(Path(folder)).read_result(REQUEST)
    os.environ[FOLDER] = folder
    os.environ |= {"RAY_TMPDIR": temporary, "RAY_AUTH_TOKEN": secrets.token_hex(32), **RAY}
    os.environ.pop("TICKETLAB_DATA", None)
    if request["data"]:
        os.environ["TICKETLAB_DATA"] = request["data"]
    status = 1
    try:
        _simulate(len(request["clients"]), int(cores))
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        # the rounds' thread would wait on for answers that nobody gives any more
        os._exit(status)


def _simulate(clients: int, cores: int) -> None:
    from flwr.simulation import run_simulation

    from ticketlab.workflows.federation import client, server

    run_simulation(
        server.app,
        client.app,
        clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            # "local": never somebody's cluster that happens to run here
            "init_args": {"address": "local", "num_cpus": cores, "num_gpus": 0, "include_dashboard": False},
        },
    )


def _end_with(parent: int, temporary: Path) -> None:
    """End this process and all that it started when the coordinator is gone: the same command begins them anew."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    remove(temporary)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
